"""Handing messages to owners: stale hints, dead and silent owners, moves, deadlines."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from torpor import errors, limits
from torpor.actors import protocol
from torpor.router import routing
from torpor.storage import records
from torpor.testing import eventually, in_process_cluster, router_parts


@pytest.fixture
async def parts() -> AsyncIterator[router_parts.RouterParts]:
    """One gateway's parts over three nodes."""
    made = await router_parts.build()
    yield made
    await made.close()


async def owner_of(parts: router_parts.RouterParts) -> in_process_cluster.Node:
    """Return the node that holds the session."""
    head = await parts.head()
    assert head.owner is not None
    return parts.cluster.nodes[head.owner.node]


async def advance_until(parts: router_parts.RouterParts, task: asyncio.Task[object]) -> None:
    """Move the clock on in small steps until the task is done; live nodes keep their leases."""
    for _ in range(200):
        if task.done():
            return
        await parts.clock.advance(0.3)
        await parts.cluster.beat()
        await parts.view.refresh()
        await asyncio.sleep(0)
    raise AssertionError("not done within a minute of the clock")


async def test_a_warm_message_reads_nothing(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the owner is known, a message goes to it without a look at the store."""
    answer = await parts.say("one", "m1")

    async def deliver(*args: object, **fields: object) -> protocol.Delivered:
        return answer

    async def read(key: records.SessionKey) -> records.Head:
        raise AssertionError("the store was read")

    monkeypatch.setattr(parts.cluster, "deliver", deliver)
    monkeypatch.setattr(parts.store.sessions, "head", read)
    assert await parts.say("two", "m2", min_version=answer.version) == answer


async def test_an_end_that_comes_with_the_answer_is_remembered(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint that was dropped meanwhile is not put back."""
    deliver = parts.cluster.deliver

    async def end(seat: protocol.Seat, *args: object, **fields: object) -> object:
        answer = await deliver(seat, *args, **fields)  # type: ignore[arg-type]
        parts.directory.forget(seat.key, seat.epoch)
        return answer

    monkeypatch.setattr(parts.cluster, "deliver", end)
    await parts.say("one", "m1")
    assert parts.directory.get(router_parts.KEY) is None


async def test_a_stale_hint_costs_one_repeat(parts: router_parts.RouterParts) -> None:
    """A session that another gateway evicted and woke elsewhere is found again."""
    other = await router_parts.second(parts)
    await parts.say("one", "m1")
    await other.control.evict(router_parts.KEY, request_id="e1", until=other.until())
    await other.say("two", "m2")
    answer = await parts.say("three", "m3")
    assert answer.version == 4
    assert parts.cluster.count("activate") == 2
    await other.close()


async def test_a_dead_process_is_buried_and_the_message_is_handled_once(
    parts: router_parts.RouterParts,
) -> None:
    """The owner's node confirms the death, and the same request id goes to the next owner."""
    await parts.say("one", "m1")
    parts.cluster.kill(router_parts.KEY)
    answer = await parts.say("two", "m2")
    assert answer.version == 3
    assert parts.cluster.count("bury") == 1
    assert (await parts.head()).epoch == 2


async def test_a_hanging_process_is_replaced(parts: router_parts.RouterParts) -> None:
    """A process that lives but answers nobody is ended by its node's agent."""
    await parts.say("one", "m1")
    parts.cluster.hung.add(router_parts.KEY)
    assert (await parts.say("two", "m2")).version == 3


async def test_a_silent_node_is_waited_out(parts: router_parts.RouterParts) -> None:
    """Nobody takes over while the lease stands; once it has lapsed another node does."""
    await parts.say("one", "m1")
    silent = await owner_of(parts)
    silent.silent = True
    saying = asyncio.create_task(parts.say("two", "m2"))
    await parts.clock.advance(1.0)
    assert not saying.done()
    await advance_until(parts, saying)
    assert (await saying).version == 3
    assert (await owner_of(parts)).name != silent.name
    assert parts.clock.monotonic_s() >= in_process_cluster.LEASE_MS / 1_000


async def test_a_call_that_hangs_ends_with_the_lease(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node lost its power, so nothing breaks the connection: the lease is what ends the wait."""
    await parts.say("one", "m1")
    lost = await owner_of(parts)
    lost.silent = True
    deliver = parts.cluster.deliver

    async def hang(seat: protocol.Seat, *args: object, **fields: object) -> protocol.Delivered:
        if seat.owner.node == lost.name:
            await asyncio.Event().wait()
        return await deliver(seat, *args, **fields)

    monkeypatch.setattr(parts.cluster, "deliver", hang)
    saying = asyncio.create_task(parts.say("two", "m2", seconds=600))
    await advance_until(parts, saying)
    assert (await saying).version == 3
    assert parts.clock.monotonic_s() < 2 * in_process_cluster.LEASE_MS / 1_000


async def test_a_lapsed_lease_needs_no_suspicion(parts: router_parts.RouterParts) -> None:
    """A gateway without a hint sees that the owner's lease is gone, and claims at once."""
    await parts.say("one", "m1")
    (await owner_of(parts)).silent = True
    for _ in range(4):
        await parts.clock.advance(in_process_cluster.LEASE_MS / 3_000)
        await parts.cluster.beat()
    other = await router_parts.second(parts)
    assert (await other.say("two", "m2")).version == 3
    assert parts.cluster.count("bury") == 0
    await other.close()


async def test_a_caller_without_time_is_told_to_try_again(
    parts: router_parts.RouterParts,
) -> None:
    """A silent owner whose lease outlasts the deadline is an error that may be retried."""
    await parts.say("one", "m1")
    (await owner_of(parts)).silent = True
    saying = asyncio.create_task(parts.say("two", "m2", seconds=3))
    await advance_until(parts, saying)
    with pytest.raises(errors.OwnerUnreachable) as caught:
        await saying
    assert caught.value.retryable


async def test_an_owner_that_outlasts_the_deadline_is_looked_into(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets DEADLINE_EXCEEDED, and a process that hangs is ended behind its back."""
    await parts.say("one", "m1")
    parts.cluster.hung.add(router_parts.KEY)
    deliver = parts.cluster.deliver

    async def slow(*args: object, timeout_s: float, **fields: object) -> object:
        await parts.clock.advance(timeout_s)
        return await deliver(*args, timeout_s=timeout_s, **fields)

    monkeypatch.setattr(parts.cluster, "deliver", slow)
    with pytest.raises(errors.DeadlineExceeded):
        await parts.say("two", "m2", seconds=5)

    async def replaced() -> bool:
        return (await parts.head()).epoch == 2

    await eventually.assert_eventually(replaced)


async def test_forwarding_is_bounded(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that moves all the time ends in Fenced, which the client may retry."""
    asked = 0

    async def ask(seat: protocol.Seat, left_s: float) -> None:
        nonlocal asked
        asked += 1
        raise errors.Fenced

    with pytest.raises(errors.Fenced):
        await parts.router.reach(router_parts.KEY, parts.until(), ask)
    assert asked == limits.FORWARDS_MAX + 1


async def test_a_session_that_one_node_cannot_load_wakes_on_another(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process says so to whoever calls it; the second node that fails has the last word."""
    tried: list[str] = []

    async def ask(seat: protocol.Seat, left_s: float) -> None:
        tried.append(seat.owner.node)
        parts.cluster.kill(router_parts.KEY)
        await parts.store.sessions.vacate(
            router_parts.KEY, epoch=seat.epoch, incarnation=seat.owner.incarnation
        )
        raise errors.ActivationFailed

    with pytest.raises(errors.ActivationFailed):
        await parts.router.reach(router_parts.KEY, parts.until(), ask)
    assert len(set(tried)) == len(tried) == routing.LOADS_TRIED_MAX


async def test_why_it_cannot_be_loaded_is_told_where_no_other_node_is_free(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the others have no room says less."""

    async def ask(seat: protocol.Seat, left_s: float) -> None:
        parts.cluster.kill(router_parts.KEY)
        await parts.store.sessions.vacate(
            router_parts.KEY, epoch=seat.epoch, incarnation=seat.owner.incarnation
        )
        for node in parts.cluster.nodes.values():
            node.refusal = errors.NoCapacity("full")
        raise errors.ActivationFailed("no module named tools")

    with pytest.raises(errors.ActivationFailed, match="tools"):
        await parts.router.reach(router_parts.KEY, parts.until(), ask)


async def test_the_deadline_is_handed_on(parts: router_parts.RouterParts) -> None:
    """What the owner is given is what is left; nobody is asked when nothing is."""
    given: list[float] = []

    async def ask(seat: protocol.Seat, left_s: float) -> None:
        given.append(left_s)
        await parts.clock.advance(4.0)
        if len(given) == 1:
            raise errors.Fenced

    await parts.router.reach(router_parts.KEY, parts.until(10.0), ask)
    assert given == [10.0, 6.0]
    with pytest.raises(errors.DeadlineExceeded):
        await parts.router.reach(router_parts.KEY, parts.until(0.0), ask)
    assert len(given) == 2


async def test_lost_turns_are_reported_before_the_message_is_handled(
    parts: router_parts.RouterParts,
) -> None:
    """A client that has seen a newer version than there is learns it; nothing is handled."""
    answer = await parts.say("one", "m1", min_version=1)
    with pytest.raises(errors.HistoryGap, match="version 2"):
        await parts.say("two", "m2", min_version=answer.version + 1)
    assert (await parts.head()).version == answer.version


async def test_a_paused_session_is_not_woken(parts: router_parts.RouterParts) -> None:
    """The message is refused before any node is asked."""
    await parts.control.pause(router_parts.KEY, request_id="p1", until=parts.until())
    with pytest.raises(errors.SessionPaused):
        await parts.say("one", "m1")
    assert parts.cluster.calls == []


async def test_what_does_not_exist_cannot_be_spoken_to(parts: router_parts.RouterParts) -> None:
    """Unknown and deleted sessions have errors of their own, with and without a hint."""
    await parts.say("one", "m1")
    await parts.control.delete(router_parts.KEY)
    with pytest.raises(errors.SessionDeleted):
        await parts.say("two", "m2")
    unknown = records.SessionKey("acme", "nobody")
    with pytest.raises(errors.SessionNotFound):
        await parts.router.drain_inbox(unknown, parts.until())


async def test_a_message_that_kills_its_processes_is_given_up(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process that takes it dies; it is not run again and again, and the session lives on."""
    deliver = parts.cluster.deliver
    deaths = 0

    async def die(
        seat: protocol.Seat, request: protocol.Deliver, **fields: float
    ) -> protocol.Delivered:
        nonlocal deaths
        if request.message.text != "deadly":
            return await deliver(seat, request, **fields)
        deaths += 1
        parts.cluster.kill(router_parts.KEY)
        raise errors.OwnerUnreachable

    monkeypatch.setattr(parts.cluster, "deliver", die)
    with pytest.raises(errors.MessageGivenUp) as caught:
        await parts.say("deadly", "m1")
    assert deaths == routing.DEATHS_MAX
    assert not caught.value.retryable
    assert (await parts.say("harmless", "m2")).version == 2


async def test_a_message_whose_last_process_had_committed_is_answered(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third process dies between its commit and its reply: the message was handled."""
    deliver = parts.cluster.deliver
    deaths = 0

    async def die_late(
        seat: protocol.Seat, request: protocol.Deliver, **fields: float
    ) -> protocol.Delivered:
        nonlocal deaths
        if deaths == routing.DEATHS_MAX:
            return await deliver(seat, request, **fields)
        deaths += 1
        if deaths == routing.DEATHS_MAX:
            await deliver(seat, request, **fields)
        parts.cluster.kill(router_parts.KEY)
        raise errors.OwnerUnreachable

    monkeypatch.setattr(parts.cluster, "deliver", die_late)
    answer = await parts.say("costly", "m1")
    assert (answer.repeated, answer.version) == (True, 2)


async def test_a_refusal_after_silence_is_no_certainty(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first owner falls silent and commits all the same; that no node has room says nothing."""
    deliver = parts.cluster.deliver

    async def commit_in_silence(
        seat: protocol.Seat, request: protocol.Deliver, **fields: float
    ) -> protocol.Delivered:
        await deliver(seat, request, **fields)
        parts.cluster.kill(router_parts.KEY)
        for node in parts.cluster.nodes.values():
            node.refusal = errors.NoCapacity()
        raise errors.OwnerUnreachable

    monkeypatch.setattr(parts.cluster, "deliver", commit_in_silence)
    with pytest.raises(errors.OutcomeUnknown):
        await parts.say("one", "m1")
    monkeypatch.undo()
    for node in parts.cluster.nodes.values():
        node.refusal = None
    assert (await parts.say("one", "m1")).repeated


async def test_a_handled_message_is_answered_also_when_paused(
    parts: router_parts.RouterParts,
) -> None:
    """Its reply was lost and it is sent again: to refuse it would be untrue."""
    first = await parts.say("one", "m1")
    await parts.control.pause(router_parts.KEY, request_id="p", until=parts.until())
    await parts.control.evict(router_parts.KEY, request_id="e", until=parts.until())
    again = await parts.say("one", "m1")
    assert (again.repeated, again.seq) == (True, first.seq)
    with pytest.raises(errors.SessionPaused):
        await parts.say("two", "m2")


async def test_a_message_does_not_find_itself_in_the_way(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call broke off after it arrived: repeated, it must not be refused for being at work."""
    policies: list[protocol.BusyPolicy] = []
    deliver = parts.cluster.deliver

    async def break_off(
        seat: protocol.Seat, request: protocol.Deliver, **fields: float
    ) -> protocol.Delivered:
        policies.append(request.busy)
        if len(policies) == 1:
            raise errors.OwnerUnreachable
        return await deliver(seat, request, **fields)

    monkeypatch.setattr(parts.cluster, "deliver", break_off)
    await parts.say("one", "m1", busy=protocol.BusyPolicy.REJECT)
    assert policies == [protocol.BusyPolicy.REJECT, protocol.BusyPolicy.ENQUEUE]
