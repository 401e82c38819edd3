"""Conformance: hints to wake a session, and nudges to who watches it."""
# ruff: noqa: S101 - these are tests

import asyncio
from collections.abc import AsyncIterator

from torpor import limits
from torpor.storage import keys, records, store
from torpor.testing import store_samples

#: Far beyond what a nudge takes, so that a lost one fails the test instead of hanging it.
NUDGE_TIMEOUT_S = 10.0


class WakeAndFeed:
    """Hints are late or needless, never lost; nudges come after a commit."""

    async def test_hint_is_found_in_its_shard(self, store: store.Store) -> None:
        """A hinted session is in exactly one shard, once however often it is hinted."""
        key = store_samples.key()
        await store.wake.ensure(key)
        await store.wake.ensure(key)
        assert await _hints(store, key) == 1

    async def test_clear_keeps_the_hint_of_waiting_messages(self, store: store.Store) -> None:
        """A hint goes only when there is nothing to wake for."""
        head = await store_samples.owned(store)
        await store.sessions.enqueue(head.key, store_samples.item("r-1"))
        await store.wake.ensure(head.key)
        await store.wake.clear(head.key)
        assert await _hints(store, head.key) == 1
        await store.sessions.commit(store_samples.commit(head, consumed=("r-1",)))
        await store.wake.clear(head.key)
        assert await _hints(store, head.key) == 0

    async def test_postponed_hint_goes_to_the_end(self, store: store.Store) -> None:
        """A postponed session is swept after all others of its shard."""
        first, second, third = store_samples.keys_of_one_shard(3)
        for key in (first, second, third):
            await store.wake.ensure(key)
        for postponed in (first, third, first):
            await store.wake.postpone(postponed)
            assert (await _order(store, first, second, third))[-1] == postponed
        for key in (first, second, third):
            await store.wake.clear(key)

    async def test_postponing_makes_no_hint(self, store: store.Store) -> None:
        """Without a hint there is nothing to postpone."""
        there, absent = store_samples.keys_of_one_shard(2)
        await store.wake.ensure(there)
        await store.wake.postpone(absent)
        assert await _hints(store, absent) == 0
        await store.wake.clear(there)

    async def test_a_paused_session_keeps_its_hint(self, store: store.Store) -> None:
        """Messages of a paused session wait with their hint, those of a deleted one are gone."""
        for end in ("pause", "delete"):
            head = await store_samples.owned(store)
            await store.sessions.enqueue(head.key, store_samples.item("r-1"))
            await store.wake.ensure(head.key)
            if end == "pause":
                paused = store_samples.commit(head, status=records.Status.PAUSED)
                await store.sessions.commit(paused)
            else:
                await store.sessions.delete(head.key)
            await store.wake.clear(head.key)
            assert await _hints(store, head.key) == (end == "pause")

    async def test_commit_nudges_watchers(self, store: store.Store) -> None:
        """Who subscribed before a commit is nudged after it, each of several watchers."""
        head = await store_samples.owned(store)
        watchers = [store.feed.subscribe(head.key) for _ in range(2)]
        for watcher in watchers:
            assert await _next(watcher) == b"c"
        await store.sessions.commit(store_samples.commit(head))
        for watcher in watchers:
            assert await _next(watcher) == b"c"
            await _close(watcher)

    async def test_deltas_reach_watchers_of_their_session(self, store: store.Store) -> None:
        """A delta is passed on as it is, and to nobody who watches another session."""
        mine, other = store_samples.key(), store_samples.key()
        watcher, stranger = store.feed.subscribe(mine), store.feed.subscribe(other)
        assert await _next(watcher) == b"c"
        assert await _next(stranger) == b"c"
        await store.feed.publish_delta(mine, b"\0one")
        await store.feed.publish_delta(other, b"two")
        assert await _next(watcher) == b"d\0one"
        assert await _next(stranger) == b"dtwo"
        await _close(watcher)
        await _close(stranger)

    async def test_watcher_may_come_back(self, store: store.Store) -> None:
        """After the last watcher left, a new one is served again."""
        key = store_samples.key()
        for _ in range(2):
            watcher = store.feed.subscribe(key)
            assert await _next(watcher) == b"c"
            await store.feed.publish_delta(key, b"x")
            assert await _next(watcher) == b"dx"
            await _close(watcher)


async def _next(watcher: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(NUDGE_TIMEOUT_S):
        return await anext(watcher)


async def _close(watcher: AsyncIterator[bytes]) -> None:
    # The protocol promises an iterator; that it can be closed is part of its docstring.
    await watcher.aclose()  # type: ignore[attr-defined]


async def _order(store: store.Store, *wanted: records.SessionKey) -> list[records.SessionKey]:
    hints = await store.wake.hinted(keys.wake_shard(wanted[0]), limit=limits.WAKE_SWEEP_MAX)
    return [key for key in hints if key in wanted]


async def _hints(store: store.Store, key: records.SessionKey) -> int:
    shards = [
        await store.wake.hinted(shard, limit=limits.WAKE_SWEEP_MAX)
        for shard in range(limits.WAKE_SHARDS)
    ]
    return sum(hints.count(key) for hints in shards)
