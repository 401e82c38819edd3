"""Sweeping wake hints: needless ones go, the others lead to a wake."""

from collections.abc import AsyncIterator

import pytest

from torpor import errors, limits
from torpor.storage import keys, records
from torpor.testing import router_parts


@pytest.fixture
async def parts() -> AsyncIterator[router_parts.RouterParts]:
    """One gateway's parts over three nodes."""
    made = await router_parts.build()
    yield made
    await made.close()


async def sweep_all(parts: router_parts.RouterParts) -> None:
    """Sweep every shard once."""
    for shard in range(limits.WAKE_SHARDS):
        await parts.sweeper.sweep(shard)


async def hinted(parts: router_parts.RouterParts) -> bool:
    """Return whether any session is hinted."""
    found = [await parts.store.wake.hinted(shard, limit=10) for shard in range(limits.WAKE_SHARDS)]
    return any(found)


async def enqueue(parts: router_parts.RouterParts) -> None:
    """Leave a message as a gateway does that dies before it wakes the session."""
    await parts.store.wake.ensure(router_parts.KEY)
    item = records.InboxItem(message=router_parts.message("left", "m1"), body_digest="d", at_ms=0)
    await parts.store.sessions.enqueue(router_parts.KEY, item)


async def test_a_message_that_nobody_woke_for_is_handled(parts: router_parts.RouterParts) -> None:
    """One sweep wakes the session, the next takes the hint away."""
    await enqueue(parts)
    await sweep_all(parts)
    assert (await parts.head()).version == 2
    await sweep_all(parts)
    assert not await hinted(parts)
    assert parts.cluster.count("activate") == 1


async def test_a_needless_hint_is_taken_away(parts: router_parts.RouterParts) -> None:
    """An empty inbox wakes nobody."""
    await parts.store.wake.ensure(router_parts.KEY)
    await sweep_all(parts)
    assert not await hinted(parts)
    assert parts.cluster.calls == []


async def test_a_paused_session_is_not_woken(parts: router_parts.RouterParts) -> None:
    """Its hint stays, so that nothing has to be written when it is resumed."""
    await enqueue(parts)
    await parts.control.pause(router_parts.KEY, request_id="p", until=parts.until())
    await sweep_all(parts)
    assert parts.cluster.count("activate") == 0
    assert await hinted(parts)
    await parts.control.resume(router_parts.KEY, request_id="r", until=parts.until())
    await sweep_all(parts)
    assert (await parts.head()).version == 4


async def test_a_hint_stays_when_the_session_cannot_be_woken(
    parts: router_parts.RouterParts,
) -> None:
    """A full cluster is tried again at the next sweep."""
    await enqueue(parts)
    for node in parts.cluster.nodes.values():
        node.refusal = errors.NoCapacity()
    await sweep_all(parts)
    assert await hinted(parts)
    for node in parts.cluster.nodes.values():
        node.refusal = None
    await sweep_all(parts)
    assert (await parts.head()).version == 2


async def test_one_broken_session_does_not_keep_others_asleep(
    parts: router_parts.RouterParts,
) -> None:
    """The hint of a deleted session is no obstacle."""
    gone = records.SessionKey("acme", "gone")
    await parts.store.wake.ensure(gone)
    await enqueue(parts)
    await sweep_all(parts)
    assert (await parts.head()).version == 2


@pytest.fixture
async def broken(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> records.SessionKey:
    """A hinted session, swept just before the healthy one, whose inbox cannot be read."""
    others = (records.SessionKey("acme", f"other-{i}") for i in range(1_000))
    shard = keys.wake_shard(router_parts.KEY)
    key = next(other for other in others if keys.wake_shard(other) == shard)
    await parts.store.wake.ensure(key)
    await enqueue(parts)
    inbox = parts.store.sessions.inbox

    async def damaged(asked: records.SessionKey) -> list[records.InboxItem]:
        if asked == key:
            raise ZeroDivisionError
        return await inbox(asked)

    monkeypatch.setattr(parts.store.sessions, "inbox", damaged)
    return key


async def test_what_is_wrong_with_one_session_does_not_end_the_sweep(
    parts: router_parts.RouterParts, broken: records.SessionKey
) -> None:
    """Also an error that nobody foresaw; the hint stays, behind the others."""
    await sweep_all(parts)
    assert (await parts.head()).version == 2
    assert (await parts.store.wake.hinted(keys.wake_shard(broken), limit=10))[-1] == broken


async def test_sessions_that_never_wake_do_not_crowd_out_others(
    parts: router_parts.RouterParts, broken: records.SessionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep looks at so many hints; those that failed are not the first ones next time."""
    monkeypatch.setattr(limits, "WAKE_SWEEP_MAX", 1)
    await sweep_all(parts)
    assert (await parts.head()).version == 1
    await sweep_all(parts)
    assert (await parts.head()).version == 2
