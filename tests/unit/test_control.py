"""What a person decides: evict, pause, resume, delete, with and without an owner."""

from collections.abc import AsyncIterator

import pytest

from torpor import errors, messages
from torpor.router import standing
from torpor.storage import keys, records
from torpor.testing import eventually, router_parts


@pytest.fixture
async def parts() -> AsyncIterator[router_parts.RouterParts]:
    """One gateway's parts over three nodes."""
    made = await router_parts.build()
    yield made
    await made.close()


async def event_types(parts: router_parts.RouterParts) -> list[str]:
    """Return the types of all events."""
    page = await parts.store.sessions.hot(router_parts.KEY, after=0, limit=100)
    return [event.type for event in page.events]


async def test_evicting_a_sleeping_session_changes_nothing(
    parts: router_parts.RouterParts,
) -> None:
    """It succeeds without asking anybody."""
    head = await parts.control.evict(router_parts.KEY, request_id="e", until=parts.until())
    assert head.version == 1
    assert parts.cluster.calls == []


async def test_evicting_goes_through_the_owner(parts: router_parts.RouterParts) -> None:
    """Afterwards nobody owns the session, and the hint is gone."""
    await parts.say("one", "m1")
    head = await parts.control.evict(router_parts.KEY, request_id="e", until=parts.until())
    assert head.owner is None
    assert parts.directory.get(router_parts.KEY) is None


@pytest.mark.parametrize("resident", [False, True])
async def test_pausing_and_resuming_are_events(
    parts: router_parts.RouterParts, resident: bool
) -> None:
    """Each decision is one commit, with or without an owner; repeating it is none."""
    if resident:
        await parts.say("one", "m1")
    for _ in range(2):
        paused = await parts.control.pause(router_parts.KEY, request_id="p", until=parts.until())
    assert paused.status is records.Status.PAUSED
    for _ in range(2):
        head = await parts.control.resume(router_parts.KEY, request_id="r", until=parts.until())
    assert head.status is records.Status.IDLE
    assert head.resident == resident
    assert (await event_types(parts))[-2:] == [messages.SESSION_PAUSED, messages.SESSION_RESUMED]
    assert (await event_types(parts)).count(messages.SESSION_PAUSED) == 1


async def test_a_session_woken_meanwhile_is_paused_through_its_owner(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit as nobody is fenced; the decision is then handed to the new owner."""
    commit = parts.store.sessions.commit

    async def wake_first(made: records.Commit) -> records.Committed:
        monkeypatch.setattr(parts.store.sessions, "commit", commit)
        await parts.say("one", "m1")
        return await commit(made)

    monkeypatch.setattr(parts.store.sessions, "commit", wake_first)
    head = await parts.control.pause(router_parts.KEY, request_id="p", until=parts.until())
    assert head.status is records.Status.PAUSED
    assert parts.cluster.count("control pause") == 1


@pytest.mark.parametrize("landed", [False, True])
async def test_an_unknown_outcome_is_looked_up(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch, landed: bool
) -> None:
    """Whether or not the lost commit took place, the session is paused by exactly one."""
    commit = parts.store.sessions.commit

    async def lose_answer(made: records.Commit) -> records.Committed:
        monkeypatch.setattr(parts.store.sessions, "commit", commit)
        if landed:
            await commit(made)
        raise errors.OutcomeUnknown

    monkeypatch.setattr(parts.store.sessions, "commit", lose_answer)
    head = await parts.control.pause(router_parts.KEY, request_id="p", until=parts.until())
    assert head.status is records.Status.PAUSED
    assert head.version == 2


async def test_an_owner_that_died_does_not_stand_in_the_way(
    parts: router_parts.RouterParts,
) -> None:
    """It is buried, and the session is paused without waking it."""
    await parts.say("one", "m1")
    parts.cluster.kill(router_parts.KEY)
    head = await parts.control.pause(router_parts.KEY, request_id="p", until=parts.until())
    assert head.status is records.Status.PAUSED
    assert not head.resident
    assert parts.cluster.count("activate") == 1


async def test_a_refusal_after_silence_is_no_certainty(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call may be at work in an owner that lives and whose mailbox is full now."""
    await parts.say("one", "m1")
    said = [errors.OwnerUnreachable(), errors.MailboxFull()]

    async def refuse(*_: object, **__: object) -> None:
        raise said.pop(0)

    async def lives(*_: object, **__: object) -> standing.Standing:
        return next(each for each in standing.Standing if each is not standing.Standing.LAPSED)

    monkeypatch.setattr(parts.cluster, "control", refuse)
    monkeypatch.setattr(parts.activator.inquiry, "settle", lives)
    with pytest.raises(errors.OutcomeUnknown):
        await parts.control.pause(router_parts.KEY, request_id="p", until=parts.until())
    assert said == []


async def test_a_session_on_a_dead_node_can_be_evicted(parts: router_parts.RouterParts) -> None:
    """Once the lease has lapsed the owner is cleared on its behalf."""
    await parts.say("one", "m1")
    for node in parts.cluster.nodes.values():
        node.silent = True
    await parts.clock.advance(60)
    head = await parts.control.evict(router_parts.KEY, request_id="e", until=parts.until())
    assert not head.resident


async def test_resuming_wakes_for_what_was_accepted_meanwhile(
    parts: router_parts.RouterParts,
) -> None:
    """What waits keeps its hint while the session is paused, so that a resume needs none."""
    await parts.control.pause(router_parts.KEY, request_id="p", until=parts.until())
    await parts.waker.accept(router_parts.KEY, router_parts.message("kept", "m1"), body_digest="d")
    await parts.waker.close()
    await parts.store.wake.clear(router_parts.KEY)
    await parts.control.resume(router_parts.KEY, request_id="r", until=parts.until())
    shard = keys.wake_shard(router_parts.KEY)
    assert await parts.store.wake.hinted(shard, limit=1) == [router_parts.KEY]

    async def handled() -> bool:
        return messages.AGENT_MESSAGE in await event_types(parts)

    await eventually.assert_eventually(handled)


async def test_deleting_tells_the_owner_to_go(parts: router_parts.RouterParts) -> None:
    """The tombstone comes first; the owner is told in the background; again is no error."""
    await parts.say("one", "m1")
    await parts.control.delete(router_parts.KEY)
    with pytest.raises(errors.SessionDeleted):
        await parts.head()

    async def told() -> bool:
        return parts.cluster.count("control evict") == 1

    await eventually.assert_eventually(told)
    await parts.control.delete(router_parts.KEY)
