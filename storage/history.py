"""A session's events, hot and cold, as one gap-free sequence."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec

from torpor import errors, limits, messages
from torpor.storage import blobs, records, segments, store

#: Events that one filtered page or tail looks at; the caller then goes on from `next_after`.
SCAN_EVENTS_MAX = 4 * limits.PAGE_EVENTS_MAX
#: A page opens at most three segments; one more serves the page that follows.
SEGMENTS_CACHED_MAX = 4
#: A seal replaces the whole index; a slow reader may still be using the one before.
_INDEXES_CACHED_MAX = 2

_T = TypeVar("_T")


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a history."""

    #: In order of `seq`; without a filter gap-free.
    events: list[messages.Event]
    #: Pass as `after` to read on; None at the end.
    next_after: int | None


class _Cache(OrderedDict[str, _T]):
    """The least recently used values by digest; a digest's value never changes."""

    def __init__(self, entries_max: int) -> None:
        super().__init__()
        self._entries_max = entries_max

    async def fetch(self, digest: str, read: Callable[[], _T]) -> _T:
        """Return the value, read in a thread unless it is here."""
        if digest not in self:
            self[digest] = await asyncio.to_thread(read)
        self.move_to_end(digest)
        value = self[digest]
        while len(self) > self._entries_max:
            self.popitem(last=False)
        return value


class History:
    """Reads the committed events of one session.

    All methods raise `HistoryGap`, `BlobCorrupt`, `BlobMissing` on damage, and `StoreUnavailable`,
    `StorageUnavailable`, `SessionNotFound`, `SessionDeleted` as the store and the blobs do.
    """

    def __init__(
        self, sessions: store.Sessions, blob_store: blobs.BlobStore, key: records.SessionKey
    ) -> None:
        self._sessions = sessions
        self._blobs = blob_store
        self._key = key
        self._indexes: _Cache[list[segments.IndexEntry]] = _Cache(_INDEXES_CACHED_MAX)
        self._segments: _Cache[list[messages.Event]] = _Cache(SEGMENTS_CACHED_MAX)

    async def read(self, after: int, limit: int) -> list[messages.Event]:
        """Return `limit` events from seq `after + 1` on, fewer only at the end."""
        events: list[messages.Event] = []
        while len(events) < limit:
            run, next_seq = await self._run(after + len(events), limit - len(events))
            events += run
            if not run or run[-1].seq + 1 >= next_seq:
                break
        return events

    async def page(self, *, after: int = 0, limit: int = 100, types: Collection[str] = ()) -> Page:
        """Return up to `limit` events with seq > `after`, of `types` if given.

        A filtered page may be short, even empty, and still have a `next_after`: it looks at
        `SCAN_EVENTS_MAX` events at most.
        """
        limit = _clamp(limit)
        found: list[messages.Event] = []
        seen = after = max(0, after)
        while True:
            wanted = limits.PAGE_EVENTS_MAX if types else limit - len(found)
            run, next_seq = await self._run(seen, wanted)
            for event in run:
                seen = event.seq
                if not types or event.type in types:
                    found.append(event)
                if len(found) == limit:
                    break
            at_end = not run or seen + 1 >= next_seq
            if at_end or len(found) == limit or seen - after >= SCAN_EVENTS_MAX:
                return Page(events=found, next_after=None if at_end else seen)

    async def tail(self, limit: int = 100, *, types: Collection[str] = ()) -> list[messages.Event]:
        """Return the newest `limit` events, oldest first, of `types` if given.

        With a filter it looks at the newest `SCAN_EVENTS_MAX` events.
        """
        limit = _clamp(limit)
        end = (await self._sessions.hot(self._key, after=0, limit=1)).next_seq - 1
        oldest = max(0, end - (SCAN_EVENTS_MAX if types else limit))
        found: list[messages.Event] = []
        while end > oldest and len(found) < limit:
            begin = max(oldest, end - limits.SEGMENT_EVENTS_MAX)
            window = await self.read(begin, end - begin)
            found = [event for event in window if not types or event.type in types] + found
            end = begin
        return found[-limit:]

    async def recent_outcomes(self, since_ms: int) -> dict[str, records.Outcome]:
        """Return the cold outcomes since `since_ms`, the newest `DEDUP_MAX` of them.

        Those of the newest segment are always among them: a clock that is ahead must not forget
        what has just been handled.
        """
        hot = await self._sessions.hot(self._key, after=0, limit=1)
        outcomes: dict[str, records.Outcome] = {}
        for entry in reversed(await self._index(hot.cold_index)):
            if len(outcomes) >= limits.DEDUP_MAX:
                break
            # Clocks of owners differ, so an old segment does not say that all before it are older.
            newest = entry.last_seq + 1 == hot.hot_from
            if newest or entry.last_at_ms >= since_ms:
                older = segments.outcomes_of(await self._segment(entry))
                kept = {rid: it for rid, it in older.items() if newest or it.at_ms >= since_ms}
                outcomes = kept | outcomes
        return dict(list(outcomes.items())[-limits.DEDUP_MAX :])

    async def answer(self, outcome: records.Outcome) -> messages.Event:
        """Return the event that answers the request.

        Raises:
            ValueError: the outcome has no answer: a bug of the caller.
        """
        if outcome.seq < 1:
            raise ValueError(f"no event answers this request: {outcome}")
        run = await self.read(outcome.seq - 1, 1)
        if not run:
            raise errors.HistoryGap(
                f"event {outcome.seq} is named as an answer, the history ends before it",
                tenant=self._key.tenant,
                session=self._key.session,
                seq=outcome.seq,
            )
        return run[0]

    async def _run(self, after: int, limit: int) -> tuple[list[messages.Event], int]:
        """Return the run from `after + 1` on, not empty before the end, and the next seq."""
        limit = min(limit, limits.PAGE_EVENTS_MAX)
        hot = await self._sessions.hot(self._key, after=after, limit=limit)
        events = hot.events
        # One read tells the boundary and the index of the same moment: what is not hot is cold.
        if after + 1 < hot.hot_from:
            cold = await self._cold(hot, after, min(after + limit, hot.hot_from - 1))
            events = cold + events if cold[-1].seq + 1 == hot.hot_from else cold
        events = events[:limit]
        if not events and after + 1 < hot.next_seq:
            raise self._gap(after + 1)
        try:
            segments.check_run(events, after + 1)
        except errors.HistoryGap as error:
            raise self._gap(int(error.ids["seq"])) from error
        return events, hot.next_seq

    async def _cold(self, hot: records.HotPage, after: int, last_seq: int) -> list[messages.Event]:
        events: list[messages.Event] = []
        for entry in await self._index(hot.cold_index):
            if entry.last_seq > after and entry.first_seq <= last_seq:
                events += await self._segment(entry)
        events = [event for event in events if after < event.seq <= last_seq]
        if not events or events[-1].seq != last_seq:
            raise self._gap(events[-1].seq + 1 if events else after + 1)
        return events

    async def _index(self, digest: str) -> list[segments.IndexEntry]:
        if not digest:
            return []
        return await self._indexes.fetch(
            digest, lambda: segments.read_index(self._blobs, self._key.tenant, digest)
        )

    async def _segment(self, entry: segments.IndexEntry) -> list[messages.Event]:
        return await self._segments.fetch(
            entry.digest, lambda: segments.read(self._blobs, self._key.tenant, entry)
        )

    def _gap(self, seq: int) -> errors.HistoryGap:
        return errors.HistoryGap(
            f"event {seq} of {self._key} is neither hot nor in a cold segment; run `torpor fsck`",
            tenant=self._key.tenant,
            session=self._key.session,
            seq=seq,
        )


def _clamp(limit: int) -> int:
    return max(1, min(limit, limits.PAGE_EVENTS_MAX))
