"""Keeping nodes in service, without Ray: actors are futures."""

import asyncio
import contextlib
import pathlib
from typing import Any

import pytest
import ray

from torpor import control_plane, deployment, errors
from torpor.storage import memory_store, records
from torpor.testing import eventually

BROKEN, SOUND = "node-1", "node-2"


class Actor:
    """Both actors of a node; counts how often its gateway was told to look."""

    def __init__(self) -> None:
        self.refreshed = 0

    @property
    def refresh(self) -> "Actor":
        """The only method called here."""
        return self

    def remote(self) -> "asyncio.Future[None]":
        """Answer at once."""
        self.refreshed += 1
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer.set_result(None)
        return answer


class Plane(control_plane.ControlPlane):
    """A control plane of two nodes, of which one cannot be brought up."""

    actor: Actor

    async def _bring_up(self, node: dict[str, Any], port: int) -> control_plane.Running:
        if node["NodeID"] == BROKEN:
            raise errors.FailedPrecondition("the port is taken")
        return control_plane.Running(
            node=node["NodeID"],
            name=node["NodeID"],
            gateway="host:1",
            gateway_actor=self.actor,
            agent_actor=self.actor,
        )


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Plane:
    """Two nodes of Ray, one of them broken."""
    nodes = [
        {"NodeID": name, "Alive": True, "NodeManagerHostname": name} for name in (BROKEN, SOUND)
    ]

    async def answers(_: object) -> bool:
        return True

    monkeypatch.setattr(control_plane.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(control_plane, "_alive", answers)
    monkeypatch.setattr(control_plane, "RECONCILE_S", 0.01)
    monkeypatch.setattr(control_plane.redis_store, "open", lambda _: memory_store.MemoryStore())
    made = Plane(
        deployment.Deployment(
            store_url="", storage=tmp_path, scratch=tmp_path, signing_key_file=tmp_path / "keys"
        )
    )
    made.actor = Actor()
    return made


async def test_broken_node_keeps_no_other_from_service(plane: Plane) -> None:
    """What is wrong with one node is raised after all others are looked after."""
    with pytest.raises(errors.FailedPrecondition):
        await plane.reconcile()
    assert list(plane.running) == [SOUND]
    assert plane.actor.refreshed == 1


async def test_term_of_node_that_ray_wrote_off_is_ended(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent may still reach the store; its sessions must be free to be taken over."""
    nodes = plane._store.nodes
    for name in (BROKEN, SOUND, "of another control plane"):
        await nodes.claim_lease(name, "first life", ttl_ms=60_000)
        await nodes.announce(_record(name))
    listed = [
        {"NodeID": name, "Alive": name == SOUND, "NodeManagerHostname": name}
        for name in (BROKEN, SOUND)
    ]
    monkeypatch.setattr(control_plane.ray, "nodes", lambda: listed)
    await plane.reconcile()
    left = {view.record.node for view in await nodes.views() if view.alive}
    assert left == {SOUND, "of another control plane"}
    assert not await nodes.lease_stands(BROKEN, "first life")


class Unavailable:
    """An actor whose death was not told."""

    def __getattr__(self, _: str) -> "Unavailable":
        """Any method."""
        return self

    def remote(self) -> "asyncio.Future[None]":
        """Fail as calls of an actor do that may come back."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer.set_exception(ray.exceptions.ActorUnavailableError("not now", None))
        return answer


@pytest.mark.parametrize("known", [True, False])
async def test_unavailable_actor_is_looked_up(
    monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    """It is dead only if Ray has its name no more."""

    def get_actor(name: str, namespace: str) -> object:
        if not known:
            raise ValueError(f"no actor {name} in {namespace}")
        return object()

    monkeypatch.setattr(control_plane.ray, "get_actor", get_actor)
    actor = Unavailable()
    running = control_plane.Running(
        node=BROKEN, name=BROKEN, gateway="host:1", gateway_actor=actor, agent_actor=actor
    )
    assert await control_plane._alive(running) is known


def _record(node: str) -> records.NodeRecord:
    return records.NodeRecord(
        node=node,
        name=node,
        incarnation="first life",
        agent_actor="",
        gateway="host:1",
        sessions_max=1,
        cpus=1.0,
        memory_bytes=1,
        started_ms=0,
    )


async def test_keeping_outlives_odd_errors(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody expected is tried again like any other."""
    rounds = []

    async def odd() -> None:
        rounds.append(len(rounds))
        raise KeyError("odd")

    monkeypatch.setattr(plane, "reconcile", odd)
    keeping = asyncio.create_task(plane.keep())

    async def again() -> bool:
        return len(rounds) > 1

    await eventually.assert_eventually(again)
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
