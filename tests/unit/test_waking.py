"""Durable delivery: the hint outlives whatever happens, and a nudge is only a nudge."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from torpor import errors
from torpor.actors import protocol
from torpor.router import waking
from torpor.storage import keys, records
from torpor.testing import eventually, router_parts


@pytest.fixture
async def parts() -> AsyncIterator[router_parts.RouterParts]:
    """One gateway's parts over three nodes."""
    made = await router_parts.build()
    yield made
    await made.close()


async def accept(parts: router_parts.RouterParts, request_id: str) -> records.Enqueued:
    """Leave a message."""
    message = router_parts.message("text", request_id)
    return await parts.waker.accept(router_parts.KEY, message, body_digest="d")


async def hinted(parts: router_parts.RouterParts) -> bool:
    """Return whether the session is hinted."""
    shard = keys.wake_shard(router_parts.KEY)
    return router_parts.KEY in await parts.store.wake.hinted(shard, limit=10)


async def test_a_sweep_in_between_does_not_lose_the_hint(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweeper that finds the inbox still empty takes it; it is back when the caller is told."""
    enqueue = parts.store.sessions.enqueue

    async def sweep_first(key: records.SessionKey, item: records.InboxItem) -> records.Enqueued:
        await parts.store.wake.clear(key)
        return await enqueue(key, item)

    monkeypatch.setattr(parts.store.sessions, "enqueue", sweep_first)
    await accept(parts, "m1")
    assert await hinted(parts)


async def test_a_wake_that_fails_leaves_the_hint(parts: router_parts.RouterParts) -> None:
    """The message is acknowledged all the same: it lies in the inbox."""
    for node in parts.cluster.nodes.values():
        node.refusal = errors.NoCapacity()
    await accept(parts, "m1")

    async def given_up() -> bool:
        return parts.cluster.count("activate") == len(parts.cluster.nodes)

    await eventually.assert_eventually(given_up)
    assert await hinted(parts)
    assert len(await parts.store.sessions.inbox(router_parts.KEY)) == 1


async def test_a_message_that_was_handled_wakes_nobody(parts: router_parts.RouterParts) -> None:
    """A repeat is answered with what became of the first."""
    await parts.say("text", "m1")
    outcome = await parts.store.sessions.outcome(router_parts.KEY, "m1")
    assert outcome is not None
    await parts.control.evict(router_parts.KEY, request_id="e", until=parts.until())
    message = router_parts.message("text", "m1")
    again = await parts.waker.accept(router_parts.KEY, message, body_digest=outcome.body_digest)
    assert again.known == outcome
    await parts.waker.close()
    assert parts.cluster.count("activate") == 1


async def test_wakes_in_the_background_are_bounded(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit is left to the sweep, with its hint."""
    monkeypatch.setattr(waking, "POKES_MAX", 0)
    await accept(parts, "m1")
    await parts.waker.close()
    assert parts.cluster.calls == []
    assert await hinted(parts)


async def test_a_message_to_nobody_leaves_no_hint(parts: router_parts.RouterParts) -> None:
    """Hints of sessions that are not there would pile up before those that are."""
    nobody = records.SessionKey("acme", "nobody")
    with pytest.raises(errors.SessionNotFound):
        await parts.waker.accept(nobody, router_parts.message("x", "m1"), body_digest="d")
    assert await parts.store.wake.hinted(keys.wake_shard(nobody), limit=10) == []


async def test_a_message_that_comes_during_a_wake_is_looked_for_again(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner may have looked before it was there: it is asked once more, not left to a sweep."""
    drain = parts.cluster.drain_inbox
    answers = asyncio.Event()

    async def answer_late(*args: Any, **fields: Any) -> None:
        await drain(*args, **fields)
        await answers.wait()

    monkeypatch.setattr(parts.cluster, "drain_inbox", answer_late)
    await accept(parts, "m1")

    async def emptied() -> bool:
        return not await parts.store.sessions.inbox(router_parts.KEY)

    await eventually.assert_eventually(emptied)
    await accept(parts, "m2")
    assert not await emptied()
    answers.set()
    await eventually.assert_eventually(emptied)


async def test_an_owner_that_has_left_is_not_asked(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that lingers takes the call without a word: only the head tells who owns now."""
    other = await router_parts.second(parts)
    await parts.say("one", "m1")
    left = await parts.head()
    await other.control.evict(router_parts.KEY, request_id="e", until=other.until())
    drain = parts.cluster.drain_inbox

    async def linger(seat: protocol.Seat, *args: Any, **fields: Any) -> None:
        if seat.owner != left.owner:
            await drain(seat, *args, **fields)

    monkeypatch.setattr(parts.cluster, "drain_inbox", linger)
    await accept(parts, "m2")

    async def handled() -> bool:
        return (await parts.head()).version == 3

    await eventually.assert_eventually(handled)
    await other.close()
