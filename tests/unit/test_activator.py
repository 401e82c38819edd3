"""Waking sessions: single flight, refusing nodes, lost races."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

import pytest

from torpor import errors
from torpor.actors import protocol
from torpor.router import activator
from torpor.testing import eventually, router_parts

T = TypeVar("T")


@pytest.fixture
async def parts() -> AsyncIterator[router_parts.RouterParts]:
    """One gateway's parts over three nodes."""
    made = await router_parts.build()
    yield made
    await made.close()


async def finish(parts: router_parts.RouterParts, task: "asyncio.Future[T]") -> T:
    """Move the clock on in small steps until the task is done; returns its result."""
    for _ in range(200):
        if task.done():
            return task.result()
        await parts.clock.advance(0.2)
        for _ in range(20):
            await asyncio.sleep(0)
    raise AssertionError("not done within 40 s of the clock")


async def test_many_callers_share_one_activation(parts: router_parts.RouterParts) -> None:
    """Fifty callers at once cost one activation, and get the same owner."""
    located = await asyncio.gather(
        *(parts.activator.locate(router_parts.KEY, parts.until()) for _ in range(50))
    )
    assert len(set(located)) == 1
    assert parts.cluster.count("activate") == 1


async def test_a_caller_that_leaves_does_not_end_the_others_activation(
    parts: router_parts.RouterParts,
) -> None:
    """The first caller is cancelled; the second still gets the owner."""
    first = asyncio.create_task(parts.activator.locate(router_parts.KEY, parts.until()))
    second = asyncio.create_task(parts.activator.locate(router_parts.KEY, parts.until()))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).epoch == 1
    assert parts.cluster.count("activate") == 1


async def test_two_gateways_follow_the_winner(parts: router_parts.RouterParts) -> None:
    """Both ask a node; the claim decides, and the loser uses the winner's activation."""
    other = await router_parts.second(parts)
    locating = asyncio.gather(
        parts.activator.locate(router_parts.KEY, parts.until()),
        other.activator.locate(router_parts.KEY, other.until()),
    )
    ours, theirs = await finish(parts, locating)
    assert ours == theirs
    assert ours.epoch == 1
    await other.close()


@pytest.mark.parametrize(
    "refusal", [errors.NoCapacity(), errors.NodeDraining(), errors.OwnerUnreachable()]
)
async def test_a_node_that_refuses_is_passed_over(
    parts: router_parts.RouterParts, refusal: errors.TorporError
) -> None:
    """The next node takes the session; each node is asked once at most."""
    for name in ("node-0", "node-1"):
        parts.cluster.nodes[name].refusal = refusal
    located = await parts.activator.locate(router_parts.KEY, parts.until())
    assert located.owner.node == "node-2"
    asked = [node for method, node in parts.cluster.calls if method == "activate"]
    assert len(asked) == len(set(asked))


async def test_a_full_cluster_says_so(parts: router_parts.RouterParts) -> None:
    """When every node refuses the caller gets NoCapacity, and no load correction stays behind."""
    for node in parts.cluster.nodes.values():
        node.refusal = errors.NoCapacity()
    with pytest.raises(errors.NoCapacity, match="3 refused"):
        await parts.activator.locate(router_parts.KEY, parts.until())
    assert all(not c.placed_since.sessions for c in parts.view.candidates())


async def test_errors_of_the_activation_pass_unchanged(parts: router_parts.RouterParts) -> None:
    """A damaged checkpoint is not a reason to try another node."""
    for node in parts.cluster.nodes.values():
        node.refusal = errors.CheckpointCorrupt("torn", session="s1")
    with pytest.raises(errors.CheckpointCorrupt, match="torn"):
        await parts.activator.locate(router_parts.KEY, parts.until())
    assert parts.cluster.count("activate") == 1


async def test_an_owner_in_office_is_used(parts: router_parts.RouterParts) -> None:
    """A second gateway finds the owner that the first one made, and asks no node."""
    ours = await parts.activator.locate(router_parts.KEY, parts.until())
    other = await router_parts.second(parts)
    assert (await other.activator.locate(router_parts.KEY, other.until())) == ours
    assert parts.cluster.count("activate") == 1
    await other.close()


async def test_a_suspected_owner_that_answers_stays(parts: router_parts.RouterParts) -> None:
    """Its node's agent says that it lives: nothing is claimed."""
    ours = await parts.activator.locate(router_parts.KEY, parts.until())
    again = await parts.activator.locate(router_parts.KEY, parts.until(), suspect_epoch=ours.epoch)
    assert again == ours
    assert parts.cluster.count("bury") == 1


async def test_losing_every_race_ends(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If somebody else always comes first, the caller is told to try again after a few rounds."""

    async def fenced(node: str, request: protocol.Activate, *, timeout_s: float) -> None:
        raise errors.Fenced

    monkeypatch.setattr(parts.cluster, "activate", fenced)
    with pytest.raises(errors.ActivationFailed):
        await parts.activator.locate(router_parts.KEY, parts.until())


async def test_a_caller_waits_no_longer_than_its_deadline(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that does not answer costs the caller its own time and no more."""
    never = asyncio.Event()

    async def stuck(node: str, request: protocol.Activate, *, timeout_s: float) -> None:
        await never.wait()

    monkeypatch.setattr(parts.cluster, "activate", stuck)
    with pytest.raises(errors.DeadlineExceeded):
        await parts.activator.locate(router_parts.KEY, parts.until(0.01))


async def test_a_broken_node_is_passed_over_once(parts: router_parts.RouterParts) -> None:
    """An activation that fails is tried on one more node, for the fault may be the node's."""
    parts.cluster.nodes["node-0"].refusal = errors.ActivationFailed("no process came up")
    for name in ("node-1", "node-2"):
        parts.cluster.nodes[name].cpu = 1.0
    await parts.cluster.beat()
    await parts.view.refresh()
    assert (await parts.activator.locate(router_parts.KEY, parts.until())).owner.node != "node-0"
    assert parts.cluster.calls[0] == ("activate", "node-0")


async def test_a_broken_session_does_not_go_through_all_nodes(
    parts: router_parts.RouterParts,
) -> None:
    """When the second node fails too, the caller gets the error."""
    for node in parts.cluster.nodes.values():
        node.refusal = errors.ActivationFailed("cannot be loaded")
    with pytest.raises(errors.ActivationFailed, match="cannot be loaded"):
        await parts.activator.locate(router_parts.KEY, parts.until())
    assert parts.cluster.count("activate") == 2


async def test_a_short_deadline_does_not_cut_the_activation_short(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waking takes what it takes: whoever asks again after a short deadline finds it done."""
    activate, opened = parts.cluster.activate, asyncio.Event()
    given: list[float] = []

    async def slow(
        node: str, request: protocol.Activate, *, timeout_s: float
    ) -> protocol.Activated:
        given.append(timeout_s)
        await opened.wait()
        return await activate(node, request, timeout_s=timeout_s)

    monkeypatch.setattr(parts.cluster, "activate", slow)
    with pytest.raises(errors.DeadlineExceeded):
        await parts.activator.locate(router_parts.KEY, parts.until(0.001))
    opened.set()
    assert (await parts.activator.locate(router_parts.KEY, parts.until())).epoch == 1
    assert given == [activator.ACTIVATE_TIMEOUT_S]


async def test_activations_of_a_gateway_are_bounded(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is refused before anything is done; a background check is simply left out."""
    monkeypatch.setattr(activator, "FLIGHTS_MAX", 0)
    with pytest.raises(errors.TooManyRequests):
        await parts.activator.locate(router_parts.KEY, parts.until())
    parts.activator.suspect(router_parts.KEY, 1)
    assert parts.cluster.calls == []


async def test_what_nobody_waits_for_ends(parts: router_parts.RouterParts) -> None:
    """All callers hang up in the middle: the session is woken, and nothing is left behind."""
    callers = [
        asyncio.create_task(parts.activator.locate(router_parts.KEY, parts.until()))
        for _ in range(3)
    ]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)

    async def landed() -> bool:
        return not parts.activator._flights

    await eventually.assert_eventually(landed)
    assert (await parts.head()).epoch == 1
