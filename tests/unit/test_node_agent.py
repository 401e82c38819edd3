"""The agent of a node, over a store in memory and slots without processes."""

import asyncio
import pathlib
from typing import Any

import msgspec
import pytest

from torpor import clock, deployment, errors, ids
from torpor.actors import (
    lifecycle,
    load_meter,
    node_agent,
    protocol,
    slot_process,
    slot_stock,
)
from torpor.storage import keyring, memory_store, records
from torpor.testing import activations, eventually, store_samples, unproven_slot

NODE = "n1"


class Maker:
    """Makes slots when it is let."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.made: list[unproven_slot.UnprovenSlot] = []
        self.refusal: errors.TorporError | None = None
        self.stock = slot_stock.Stock(self._never, clock.SystemClock(), starts_max=1)

    async def _never(self, kind: slot_stock.Kind) -> slot_process.Slot:
        """Start nothing: nobody takes from this stock."""
        raise NotImplementedError

    async def make(
        self,
        request: protocol.Activate,
        incarnation: str,
        nonce: str,
    ) -> slot_process.Slot:
        """Wait to be let."""
        self.begun.set()
        await self.go.wait()
        kind = slot_stock.Kind(tenant=request.key.tenant, agent=request.agent)
        slot = unproven_slot.UnprovenSlot(kind, "actor", self._folder / nonce)
        claim = records.Acquire(
            key=request.key,
            observed_epoch=request.observed_epoch,
            observed_incarnation=request.observed_incarnation,
            owner=msgspec.structs.replace(store_samples.OWNER, incarnation=incarnation),
            nonce=nonce,
        )
        slot.bind(claim)
        slot.handle = unproven_slot.Handle()
        self.made.append(slot)
        return slot

    async def see_up(self, slot: slot_process.Slot) -> None:
        """Say that it is loaded, or why it is not."""
        if self.refusal is not None:
            raise self.refusal


class Office:
    """A node's agent in office."""

    def __init__(self, agent: node_agent.NodeAgent, maker: Maker) -> None:
        self.agent = agent
        self.maker = maker

    def wake(self) -> "asyncio.Task[protocol.Activated | protocol.Refusal]":
        """Begin to wake a session."""
        request = protocol.Activate(
            key=KEY,
            observed_epoch=0,
            observed_incarnation="",
            agent=activations.AGENT,
            deadline_s=60.0,
        )
        return asyncio.create_task(self.agent.activate(request))

    async def woken(self) -> unproven_slot.UnprovenSlot:
        """Wake a session and return its slot."""
        self.maker.go.set()
        protocol.accept(await self.wake())
        slot = self.maker.made[-1]
        await eventually.until(lambda: slot in self.agent._slots.values())
        return slot


KEY = records.SessionKey("acme", "chat")
NEW = records.NewSession(
    key=KEY, agent="agent", agent_version=1, request_id="new", created_ms=activations.AT_MS
)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> memory_store.MemoryStore:
    """The store that the agent opens."""
    made = memory_store.MemoryStore()
    monkeypatch.setattr(node_agent.redis_store, "open", lambda _: made)
    monkeypatch.setattr(node_agent, "BEAT_S", 0.01)
    return made


@pytest.fixture
def agent(store: memory_store.MemoryStore, tmp_path: pathlib.Path) -> node_agent.NodeAgent:
    """An agent that has not started."""
    keyring.create(tmp_path / "keys")
    place = deployment.Deployment(
        store_url="",
        storage=tmp_path,
        scratch=tmp_path,
        signing_key_file=tmp_path / "keys",
        lanes=False,
    )
    return node_agent.NodeAgent(place, NODE, NODE, "host:1", 1.0)


@pytest.fixture
async def office(agent: node_agent.NodeAgent, tmp_path: pathlib.Path) -> Any:
    """An agent in office."""
    await agent.start()
    agent._maker = maker = Maker(tmp_path)  # type: ignore[assignment]
    yield Office(agent, maker)
    agent._keeper.stop()
    for task in agent._tasks:
        task.cancel()


async def test_failed_start_is_tried_again(
    agent: node_agent.NodeAgent,
    store: memory_store.MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An agent whose store was away is not in office: the next start announces the node."""

    async def away(_: object) -> None:
        raise errors.StoreUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(store.nodes, "announce", away)
        with pytest.raises(errors.StoreUnavailable):
            await agent.start()
    given_up = agent._keeper
    incarnation = await agent.start()
    (view,) = await store.nodes.views()
    assert (view.record.incarnation, view.alive) == (incarnation, True)
    assert given_up._stop.is_set()
    assert await agent.start() == incarnation
    agent._keeper.stop()


async def test_session_that_is_being_woken_is_not_buried(
    office: Office, store: memory_store.MemoryStore
) -> None:
    """A caller's impatience ends no boot, whose claim may stand in the head already."""
    waking = office.wake()
    await office.maker.begun.wait()
    assert await office.agent.bury(KEY, 1) is False
    office.maker.go.set()
    protocol.accept(await waking)


async def test_drain_during_a_wake(office: Office) -> None:
    """A session that was being woken when draining began is asked to leave, too."""
    waking = office.wake()
    await office.maker.begun.wait()
    await office.agent.drain()
    office.maker.go.set()
    protocol.accept(await waking)
    slot = office.maker.made[0]

    await _asked(slot)


async def _asked(slot: unproven_slot.UnprovenSlot) -> None:
    await eventually.until(lambda: slot.handle.control.calls)


async def test_a_session_that_cannot_be_loaded_leaves_no_trace(office: Office) -> None:
    """Its callers hear why from its process; here its place is free again."""
    office.maker.refusal = errors.CheckpointCorrupt()
    office.maker.go.set()
    protocol.accept(await office.wake())
    await eventually.until(lambda: not office.agent._waking)
    assert not office.agent._slots


async def test_lapse_during_a_wake(office: Office) -> None:
    """A claim of a term that is over is of no use: the process ends, its callers go elsewhere."""
    waking = office.wake()
    await office.maker.begun.wait()
    office.agent._incarnation = ids.nonce()
    office.maker.go.set()
    with pytest.raises(errors.NodeDraining):
        protocol.accept(await waking)
    await eventually.until(office.maker.made[0].dead.is_set)


async def test_retiring_waits_for_no_endless_turn(
    office: Office, store: memory_store.MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is given up though a session does not leave: its next owner need not wait."""
    monkeypatch.setattr(node_agent, "RETIRE_S", 0.01)
    slot = await office.woken()
    await office.agent.retire()
    assert slot.handle.control.calls
    assert not await store.nodes.lease_stands(NODE, office.agent._incarnation)

    async def beats_no_more() -> bool:
        running = {task.get_coro().__qualname__ for task in office.agent._tasks}
        return "NodeAgent._keep_beat" not in running

    await eventually.assert_eventually(beats_no_more)


async def test_process_that_does_not_answer_is_ended(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle session is asked to leave once; silent to that and to a ping, it is killed."""
    monkeypatch.setattr(slot_process, "LEAVE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(slot_process, "PING_TIMEOUT_S", 0.01)
    slot = await office.woken()
    slot.quiet_s = 1e6

    async def killed() -> bool:
        return slot.killed

    await eventually.assert_eventually(killed)
    assert len(slot.handle.leave.calls) == 1


@pytest.mark.parametrize("alive", [True, False])
async def test_turn_that_never_ends(
    office: Office, monkeypatch: pytest.MonkeyPatch, *, alive: bool
) -> None:
    """Long after its time a turn's process is asked whether it lives, and killed if it does not."""
    monkeypatch.setattr(slot_process, "PING_TIMEOUT_S", 0.01)
    slot = await office.woken()
    if alive:
        slot.handle.ping.answer.set_result(slot.epoch)
    slot.phase, slot.quiet_s = lifecycle.Phase.WORKING, 1e6

    async def asked_twice_or_killed() -> bool:
        return slot.killed or len(slot.handle.ping.calls) > 1

    await eventually.assert_eventually(asked_twice_or_killed)
    assert slot.killed is not alive


async def test_beat_outlives_odd_errors(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody expected costs one beat, not all that follow."""
    meter, odd = office.agent._meter, ["once"]

    def read(pids: list[int]) -> load_meter.Reading:
        if odd:
            raise RuntimeError(odd.pop())
        return load_meter.LoadMeter.read(meter, pids)

    monkeypatch.setattr(meter, "read", read)
    beat = office.agent._beat

    async def goes_on() -> bool:
        return not odd and office.agent._beat > beat

    await eventually.assert_eventually(goes_on)


async def test_a_process_that_the_store_has_forgotten_makes_way(
    office: Office, store: memory_store.MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store went back to before its claim: the session is woken again, the new one stays."""
    monkeypatch.setattr(slot_process, "LEAVES_S", 0.01)
    monkeypatch.setattr(slot_process, "PING_TIMEOUT_S", 0.01)
    await store.sessions.create(NEW)
    forgotten = await office.woken()
    again = await office.woken()
    assert forgotten.dead.is_set()
    assert not again.dead.is_set()
    assert again.nonce != forgotten.nonce
    assert office.agent._slots[KEY, 1] is again


async def test_a_process_that_the_store_has_forgotten_may_report_it(
    office: Office, store: memory_store.MemoryStore
) -> None:
    """It alone knows what is lost: it is asked to leave, and claims the session to say so."""
    head = await store.sessions.create(NEW)
    forgotten = await office.woken()
    waking = office.wake()

    await _asked(forgotten)
    assert not forgotten.dead.is_set()
    await store.sessions.acquire(store_samples.claim(head))
    forgotten.handle.control.answer.set_result(protocol.refuse(errors.VersionsLost()))
    forgotten.dead.set()
    with pytest.raises(errors.Fenced):
        protocol.accept(await waking)
    assert office.maker.made == [forgotten]


async def test_a_forgotten_process_in_a_turn_is_not_killed(
    office: Office, store: memory_store.MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it knows to be lost would be lost with it: the session may wake on another node."""
    monkeypatch.setattr(slot_process, "LEAVES_S", 0.01)
    await store.sessions.create(NEW)
    busy = await office.woken()
    busy.handle.ping.answer.set_result(1)
    with pytest.raises(errors.NoCapacity):
        protocol.accept(await office.wake())
    assert not busy.dead.is_set()
    assert busy.handle.control.calls


async def test_who_is_not_known_after_a_failover_is_asked_to_leave(
    office: Office, store: memory_store.MemoryStore
) -> None:
    """The store went back to before its claim, and nobody has called it since; it is not killed."""
    await store.sessions.create(NEW)
    unknown = await office.woken()
    store.connections_lost += 1

    await _asked(unknown)
    assert not unknown.dead.is_set()


async def test_the_place_of_a_dead_session_is_free_before_its_files_are(
    office: Office, store: memory_store.MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workspace may take long to remove, and others want to wake."""
    removing, removed, looked = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Kept:
        """Keeps nothing, and says when it is asked to look."""

        def keep(self, *_: object) -> bool:
            """Refuse."""
            return False

        def look(self, _: object) -> None:
            """Note it."""
            loop.call_soon_threadsafe(looked.set)

        def trim(self) -> None:
            """There is nothing."""

    async def clean(_: pathlib.Path) -> None:
        removing.set()
        await removed.wait()

    loop = asyncio.get_running_loop()
    office.maker.kept = Kept()  # type: ignore[attr-defined]
    monkeypatch.setattr(slot_process, "clean", clean)
    monkeypatch.setattr(node_agent, "BEAT_S", 0.01)
    await store.sessions.create(store_samples.new(KEY))
    slot = await office.woken()
    slot._died()
    await removing.wait()
    assert (await office.agent.observe()).sessions == 0
    removed.set()
    await looked.wait()
