"""Conformance: a commit is true as a whole or not at all."""
# ruff: noqa: S101 - these are tests

from typing import Any

import msgspec
import pytest

from torpor import errors, limits
from torpor.storage import records, store
from torpor.testing import store_samples


class Commits:
    """Versions and seqs are gap-free, and a refused commit leaves no trace."""

    async def test_commit_counts_versions_and_seqs(self, store: store.Store) -> None:
        """Each commit is one version more, each event one seq more."""
        head = await store_samples.owned(store)
        done = await store.sessions.commit(store_samples.commit(head, count=3))
        assert done == records.Committed(version=2, next_seq=5)
        head = await store.sessions.head(head.key)
        assert (head.version, head.next_seq) == (2, 5)
        done = await store.sessions.commit(store_samples.commit(head, count=0))
        assert done == records.Committed(version=3, next_seq=5)

    async def test_events_come_back_as_written(self, store: store.Store) -> None:
        """Hot events are read in order, from any seq, and as many as asked for."""
        head = await store_samples.owned(store)
        commit = store_samples.commit(head, count=4)
        await store.sessions.commit(commit)
        page = await store.sessions.hot(head.key, after=1, limit=9)
        assert page.events == list(commit.events)
        page = await store.sessions.hot(head.key, after=2, limit=2)
        assert page.events == list(commit.events[1:3])
        assert (await store.sessions.hot(head.key, after=5, limit=9)).events == []

    async def test_none_leaves_a_field_as_it_is(self, store: store.Store) -> None:
        """A commit changes what it names and nothing else."""
        head = await store_samples.owned(store)
        await store.sessions.commit(
            store_samples.commit(
                head,
                checkpoint=_ref(inline=True),
                inline_state=b"s",
                manifest="m-1",
                usage=records.Usage(turns=1),
                status=records.Status.RUNNING,
            )
        )
        before = await store.sessions.head(head.key)
        await store.sessions.commit(store_samples.commit(before, count=0, at_ms=5))
        after = await store.sessions.head(head.key)
        assert after == msgspec.structs.replace(
            before, version=3, commit_id=after.commit_id, updated_ms=5
        )
        taken = await store.sessions.acquire(store_samples.claim(after))
        assert taken.inline_state == b"s"

    async def test_blob_state_replaces_the_inline_one(self, store: store.Store) -> None:
        """A checkpoint in a blob removes the envelope from beside the head."""
        head = await store_samples.owned(store)
        await store.sessions.commit(
            store_samples.commit(head, checkpoint=_ref(inline=True), inline_state=b"s")
        )
        head = await store.sessions.head(head.key)
        await store.sessions.commit(store_samples.commit(head, checkpoint=_ref(inline=False)))
        taken = await store.sessions.acquire(
            store_samples.claim(await store.sessions.head(head.key))
        )
        assert (taken.inline_state, taken.head.checkpoint) == (None, _ref(inline=False))

    async def test_repeated_commit_is_a_duplicate(self, store: store.Store) -> None:
        """The same commit id returns what it returned and writes nothing again."""
        head = await store_samples.owned(store)
        await store.sessions.enqueue(head.key, store_samples.item("r-1"))
        await store.sessions.enqueue(head.key, store_samples.item("r-2"))
        commit = store_samples.commit(
            head, consumed=("r-1",), outcomes={"r-1": store_samples.done()}
        )
        first = await store.sessions.commit(commit)
        after = await store.sessions.head(head.key)
        again = await store.sessions.commit(commit)
        assert again == msgspec.structs.replace(first, duplicate=True)
        assert await store.sessions.head(head.key) == after
        assert await store.sessions.inbox(head.key) == [store_samples.item("r-2")]
        assert len((await store.sessions.hot(head.key, after=0, limit=9)).events) == 2

    async def test_duplicate_of_a_former_epoch_is_fenced(self, store: store.Store) -> None:
        """Ownership is looked at before the commit id: who must stop learns it."""
        head = await store_samples.owned(store)
        commit = store_samples.commit(head)
        await store.sessions.commit(commit)
        taken = await store.sessions.acquire(
            store_samples.claim(await store.sessions.head(head.key))
        )
        assert taken.head.commit_id == commit.commit_id
        with pytest.raises(errors.Fenced):
            await store.sessions.commit(commit)

    @pytest.mark.parametrize("off_by", [-1, 1])
    async def test_version_must_match(self, store: store.Store, off_by: int) -> None:
        """A commit on another version is a conflict."""
        head = await store_samples.owned(store)
        await self._refused(
            store, head, errors.VersionConflict, expected_version=head.version + off_by
        )

    @pytest.mark.parametrize("off_by", [-1, 1])
    async def test_seqs_must_continue(self, store: store.Store, off_by: int) -> None:
        """Events that do not begin at the next seq are a conflict."""
        head = await store_samples.owned(store)
        moved = msgspec.structs.replace(head, next_seq=head.next_seq + off_by)
        events = store_samples.events(moved, 2)
        await self._refused(store, head, errors.VersionConflict, events=events)

    async def test_gap_between_events_is_a_fault(self, store: store.Store) -> None:
        """Events that have a gap among themselves are refused."""
        head = await store_samples.owned(store)
        events = store_samples.events(head, 3)
        await self._refused(store, head, errors.Internal, events=[events[0], events[2]])

    @pytest.mark.parametrize("consumed", [("r-2",), ("r-2", "r-1"), ("r-1", "r-2", "r-3"), ("r-",)])
    async def test_consumed_items_are_the_first(
        self, store: store.Store, consumed: tuple[str, ...]
    ) -> None:
        """Only the inbox's first items, in order, can be consumed."""
        head = await store_samples.owned(store)
        await store.sessions.enqueue(head.key, store_samples.item("r-1"))
        await store.sessions.enqueue(head.key, store_samples.item("r-2"))
        await self._refused(store, head, errors.VersionConflict, consumed=consumed)

    async def test_consuming_resolves_requests(self, store: store.Store) -> None:
        """Consumed items leave the inbox, and their outcome replaces the pending one."""
        head = await store_samples.owned(store)
        for i in (1, 2, 3):
            await store.sessions.enqueue(head.key, store_samples.item(f"r-{i}"))
        outcomes = {"r-1": store_samples.done(), "r-2": store_samples.done()}
        await store.sessions.commit(
            store_samples.commit(head, consumed=("r-1", "r-2"), outcomes=outcomes)
        )
        assert await store.sessions.inbox(head.key) == [store_samples.item("r-3")]
        assert await store.sessions.outcome(head.key, "r-2") == store_samples.done()
        known = await store.sessions.enqueue(head.key, store_samples.item("r-1"))
        assert (known.length, known.known) == (1, store_samples.done())

    async def test_outcomes_are_bounded(self, store: store.Store) -> None:
        """One outcome more than `DEDUP_HOT_MAX` is refused; a known id may still be resolved."""
        head = await store_samples.owned(store)
        full = {f"r-{i}": store_samples.done() for i in range(limits.DEDUP_HOT_MAX)}
        await store.sessions.commit(store_samples.commit(head, outcomes=full))
        head = await store.sessions.head(head.key)
        await self._refused(
            store, head, errors.DedupFull, outcomes={"one-more": store_samples.done()}
        )
        with pytest.raises(errors.DedupFull):
            await store.sessions.enqueue(head.key, store_samples.item("one-more"))
        await store.sessions.commit(
            store_samples.commit(head, outcomes={"r-1": store_samples.done(version=3)})
        )
        assert await store.sessions.outcome(head.key, "r-1") == store_samples.done(version=3)

    async def test_events_of_a_commit_are_bounded(self, store: store.Store) -> None:
        """A commit with more than `TURN_EVENTS_MAX` events is refused; so many pass."""
        head = await store_samples.owned(store)
        with pytest.raises(errors.ResourceExhausted):
            await store.sessions.commit(
                store_samples.commit(head, count=limits.TURN_EVENTS_MAX + 1)
            )
        done = await store.sessions.commit(store_samples.commit(head, count=limits.TURN_EVENTS_MAX))
        assert done.next_seq == limits.TURN_EVENTS_MAX + 2

    async def _refused(
        self,
        store: store.Store,
        head: records.Head,
        error: type[errors.TorporError],
        **changes: Any,
    ) -> None:
        """Check that a commit with these changes is refused, and that nothing changed."""
        hot = await store.sessions.hot(head.key, after=0, limit=9)
        inbox = await store.sessions.inbox(head.key)
        tempting = {
            "status": records.Status.PAUSED,
            "checkpoint": _ref(inline=True),
            "inline_state": b"new",
            "outcomes": {"r-new": store_samples.done()},
        }
        with pytest.raises(error):
            await store.sessions.commit(store_samples.commit(head, **{**tempting, **changes}))
        assert await store.sessions.head(head.key) == head
        assert await store.sessions.hot(head.key, after=0, limit=9) == hot
        assert await store.sessions.inbox(head.key) == inbox
        assert await store.sessions.outcome(head.key, "r-new") is None


def _ref(*, inline: bool) -> records.CheckpointRef:
    return records.CheckpointRef(
        version=2, epoch=1, origin="chat", state="state-digest", state_bytes=1, inline=inline
    )
