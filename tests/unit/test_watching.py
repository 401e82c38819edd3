"""Following a history: nudges, polls, deltas, heartbeats, gaps."""

import asyncio
import pathlib
from collections.abc import AsyncIterator

import pytest

from torpor import errors, limits, messages
from torpor.router import watching
from torpor.storage import local_blobs
from torpor.testing import eventually, router_parts


@pytest.fixture
async def parts() -> AsyncIterator[router_parts.RouterParts]:
    """One gateway's parts over three nodes."""
    made = await router_parts.build()
    yield made
    await made.close()


@pytest.fixture
def watchers(parts: router_parts.RouterParts, tmp_path: pathlib.Path) -> watching.Watching:
    """The watchers of that gateway."""
    return watching.Watching(parts.store, local_blobs.LocalBlobStore(tmp_path), parts.clock)


async def take(items: AsyncIterator[watching.Item], count: int) -> list[watching.Item]:
    """Return the next items."""
    return [await anext(items) for _ in range(count)]


async def test_history_is_replayed_from_where_it_was_left(
    parts: router_parts.RouterParts, watchers: watching.Watching
) -> None:
    """Only what comes after the given seq, in order, without a gap."""
    await parts.say("one", "m1")
    await parts.say("two", "m2")
    watch = watchers.watch(router_parts.KEY, after_seq=2, types=())
    assert [item.seq for item in await take(watch, 3)] == [3, 4, 5]
    await watch.aclose()


async def test_a_filter_hides_events_and_deltas(
    parts: router_parts.RouterParts, watchers: watching.Watching
) -> None:
    """Only the wanted types are sent; pieces of replies are not, if replies are not wanted."""
    watch = watchers.watch(router_parts.KEY, after_seq=0, types={messages.USER_MESSAGE})
    first = asyncio.create_task(anext(watch))

    async def listening() -> bool:
        await parts.store.feed.publish_delta(router_parts.KEY, b"piece")
        return bool(parts.store.feed._queues.get(router_parts.KEY))

    await eventually.assert_eventually(listening)
    await parts.say("one", "m1")
    item = await first
    assert isinstance(item, messages.Event)
    assert item.data["text"] == "one"
    await watch.aclose()


async def test_deltas_come_before_the_event_that_replaces_them(
    parts: router_parts.RouterParts, watchers: watching.Watching
) -> None:
    """A provisional piece passes at once; the committed event follows."""
    watch = watchers.watch(router_parts.KEY, after_seq=1, types=())
    piece = asyncio.create_task(anext(watch))

    async def received() -> bool:
        await parts.store.feed.publish_delta(router_parts.KEY, b"ec")
        return piece.done()

    await eventually.assert_eventually(received)
    assert await piece == watching.Delta("ec")
    await parts.say("one", "m1")
    events = [item async for item in _until_event(watch, 3) if isinstance(item, messages.Event)]
    assert [event.seq for event in events] == [2, 3]
    await watch.aclose()


async def _until_event(
    watch: AsyncIterator[watching.Item], seq: int
) -> AsyncIterator[watching.Item]:
    async for item in watch:
        yield item
        if isinstance(item, messages.Event) and item.seq == seq:
            return


async def test_lost_nudges_are_made_up_for_by_polling(
    parts: router_parts.RouterParts,
    watchers: watching.Watching,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a feed that is silent the events still come, a second later at most."""

    async def silent(key: object) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    monkeypatch.setattr(parts.store.feed, "subscribe", silent)
    watch = watchers.watch(router_parts.KEY, after_seq=1, types=())
    item = asyncio.create_task(anext(watch))
    await parts.say("one", "m1")

    async def polled() -> bool:
        await parts.clock.advance(watching.POLL_S)
        return item.done()

    await eventually.assert_eventually(polled)
    event = await item
    assert isinstance(event, messages.Event)
    assert event.seq == 2
    await watch.aclose()


async def test_a_quiet_stream_beats(
    parts: router_parts.RouterParts, watchers: watching.Watching
) -> None:
    """After a while without events the stream says up to where everything was sent."""
    watch = watchers.watch(router_parts.KEY, after_seq=1, types=())
    item = asyncio.create_task(anext(watch))

    async def beaten() -> bool:
        await parts.clock.advance(watching.POLL_S)
        return item.done()

    await eventually.assert_eventually(beaten)
    assert await item == watching.Heartbeat(1)
    assert parts.clock.monotonic_s() >= watching.HEARTBEAT_S
    await watch.aclose()


async def test_a_watcher_ahead_of_the_history_learns_of_the_loss(
    parts: router_parts.RouterParts, watchers: watching.Watching
) -> None:
    """Whoever saw an event that is not there any more is told, and does not wait for ever."""
    with pytest.raises(errors.HistoryGap):
        await anext(watchers.watch(router_parts.KEY, after_seq=2, types=()))


async def test_deleting_ends_the_stream(
    parts: router_parts.RouterParts, watchers: watching.Watching
) -> None:
    """The watcher is told why."""
    watch = watchers.watch(router_parts.KEY, after_seq=1, types=())
    item = asyncio.create_task(anext(watch))
    await asyncio.sleep(0)
    await parts.control.delete(router_parts.KEY)

    async def ended() -> bool:
        await parts.clock.advance(watching.POLL_S)
        return item.done()

    await eventually.assert_eventually(ended)
    with pytest.raises(errors.SessionDeleted):
        await item


async def test_watchers_are_bounded(
    parts: router_parts.RouterParts,
    watchers: watching.Watching,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One more than allowed is refused; one that leaves makes room."""
    monkeypatch.setattr(limits, "WATCHERS_MAX", 1)
    first = watchers.watch(router_parts.KEY, after_seq=0, types=())
    await anext(first)
    with pytest.raises(errors.TooManyRequests):
        await anext(watchers.watch(router_parts.KEY, after_seq=0, types=()))
    await first.aclose()
    third = watchers.watch(router_parts.KEY, after_seq=0, types=())
    await anext(third)
    await third.aclose()
