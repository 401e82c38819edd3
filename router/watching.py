"""Following a session's history from any gateway, without a gap or a repeat."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection

import msgspec

from torpor import clock, errors, limits, messages
from torpor.storage import blobs, history, records, store

#: Nudges may be lost, so history is looked at this often in any case.
POLL_S = 1.0
#: A quiet stream says this often that it is still there; proxies cut idle ones after a minute.
HEARTBEAT_S = 15.0
#: Deltas waiting for a slow reader; further ones are dropped, the committed event has all of it.
NUDGES_MAX = 256

_POLL = b"p"
_DELTA = b"d"


class Delta(msgspec.Struct, frozen=True):
    """A provisional piece of a reply."""

    text: str


class Heartbeat(msgspec.Struct, frozen=True):
    """Everything up to this seq was sent."""

    seq: int


Item = messages.Event | Delta | Heartbeat


class Watching:
    """The watchers of one gateway."""

    def __init__(self, stored: store.Store, blob_store: blobs.BlobStore, time: clock.Clock) -> None:
        self._store = stored
        self._blobs = blob_store
        self._clock = time
        self._watchers = 0

    async def watch(
        self, key: records.SessionKey, *, after_seq: int, types: Collection[str]
    ) -> AsyncGenerator[Item]:
        """Yield the events after `after_seq`, of `types` if given, then follow until closed.

        Raises:
            TooManyRequests: this gateway has as many watchers as it may.
            HistoryGap: events are missing, or `after_seq` is ahead of the history.
            SessionNotFound, SessionDeleted: also in the middle, when it is deleted.
            StoreUnavailable: watch again after the last seq that was seen.
        """
        if self._watchers >= limits.WATCHERS_MAX:
            raise errors.TooManyRequests(
                f"this gateway has {limits.WATCHERS_MAX} watchers; try another one"
            )
        self._watchers += 1
        nudges: asyncio.Queue[bytes] = asyncio.Queue(NUDGES_MAX)
        sources = [
            asyncio.create_task(self._listen(key, nudges)),
            asyncio.create_task(self._tick(nudges)),
        ]
        try:
            head = await self._store.sessions.head(key)
            if after_seq >= head.next_seq:
                raise _gap(key, f"seq {after_seq} was seen, but the history ends before it")
            items = self._follow(key, after_seq, types, nudges)
            async with contextlib.aclosing(items):
                async for item in items:
                    yield item
        finally:
            self._watchers -= 1
            for source in sources:
                source.cancel()
            await asyncio.gather(*sources, return_exceptions=True)

    async def _follow(
        self,
        key: records.SessionKey,
        last: int,
        types: Collection[str],
        nudges: asyncio.Queue[bytes],
    ) -> AsyncGenerator[Item]:
        wants_deltas = not types or messages.AGENT_MESSAGE in types
        spoke_s = self._clock.monotonic_s()
        while True:
            # Made anew each time: it keeps segments, and a watcher may stay for days.
            past = history.History(self._store.sessions, self._blobs, key)
            while events := await past.read(last, limits.PAGE_EVENTS_MAX):
                for event in events:
                    if event.seq != last + 1:
                        raise _gap(key, f"event {event.seq} follows {last}")
                    last = event.seq
                    if not types or event.type in types:
                        yield event
                        spoke_s = self._clock.monotonic_s()
            while (nudge := await nudges.get()).startswith(_DELTA):
                if wants_deltas:
                    yield Delta(nudge.removeprefix(_DELTA).decode(errors="replace"))
            if self._clock.monotonic_s() - spoke_s >= HEARTBEAT_S:
                yield Heartbeat(last)
                spoke_s = self._clock.monotonic_s()

    async def _listen(self, key: records.SessionKey, nudges: asyncio.Queue[bytes]) -> None:
        while True:
            with contextlib.suppress(errors.Unavailable):
                async for nudge in self._store.feed.subscribe(key):
                    _offer(nudges, nudge)
            await self._clock.sleep(POLL_S)

    async def _tick(self, nudges: asyncio.Queue[bytes]) -> None:
        while True:
            await self._clock.sleep(POLL_S)
            _offer(nudges, _POLL)


def _offer(nudges: asyncio.Queue[bytes], nudge: bytes) -> None:
    # A full queue holds a poll or will get one.
    with contextlib.suppress(asyncio.QueueFull):
        nudges.put_nowait(nudge)


def _gap(key: records.SessionKey, what: str) -> errors.HistoryGap:
    return errors.HistoryGap(f"events are missing: {what}", session=key.session, tenant=key.tenant)
