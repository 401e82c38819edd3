"""Conformance: what a wake can go back to, and the commit that does."""
# ruff: noqa: S101 - these are tests

from typing import Any

import pytest

from torpor import errors, limits
from torpor.storage import records, store
from torpor.testing import store_samples


class RestorePoints:
    """The last versions of state and files are kept whole, each with the state's envelope."""

    async def test_each_change_leaves_a_restore_point(self, store: store.Store) -> None:
        """Of states in the store, states in blobs and files alike, newest first, and bounded."""
        head = await store_samples.owned(store)
        assert [point.version for point in await store.sessions.restore_points(head.key)] == [1]
        head = await _commit(store, head, inline=b"two")
        head = await _commit(store, head, manifest="m-3")
        head = await _commit(store, head, inline=None)
        head = await _commit(store, head, inline=b"five")
        head = await _commit(store, head, inline=b"six", manifest="m-6")
        points = await store.sessions.restore_points(head.key)
        assert len(points) == limits.RESTORE_POINTS_MAX
        assert [
            (point.version, point.next_seq, point.manifest, point.inline_state) for point in points
        ] == [
            (6, head.next_seq, "m-6", b"six"),
            (5, head.next_seq - 1, "m-3", b"five"),
            (4, head.next_seq - 2, "m-3", None),
            (3, head.next_seq - 3, "m-3", b"two"),
        ]
        assert points[3].checkpoint == _ref(2, inline=True)
        assert {point.at_ms for point in points} == {store_samples.AT_MS}

    async def test_commits_that_change_neither_leave_none(self, store: store.Store) -> None:
        """A point is the last version before a change: nothing that is kept is given up for it."""
        head = await _commit(store, await store_samples.owned(store), inline=b"two")
        await store.sessions.commit(store_samples.commit(head, status=records.Status.PAUSED))
        head = await store.sessions.head(head.key)
        head = await _commit(store, head, inline=b"four")
        points = await store.sessions.restore_points(head.key)
        assert [(point.version, point.inline_state) for point in points] == [
            (4, b"four"),
            (3, b"two"),
        ]

    async def test_files_before_the_first_turn_leave_none(self, store: store.Store) -> None:
        """Without a state there is nothing to go back to but what the head names."""
        head = await store_samples.owned(store)
        for manifest in ("m-2", "m-3"):
            head = await _commit(store, head, manifest=manifest)
        (point,) = await store.sessions.restore_points(head.key)
        assert (point.version, point.checkpoint, point.manifest) == (3, None, "m-3")
        taken = await store.sessions.acquire(store_samples.claim(head))
        assert taken.inline_state is None

    async def test_asleep_fewer_are_kept(self, store: store.Store) -> None:
        """Giving the session up keeps the newest and one more."""
        head = await _many(store)
        await store.sessions.release(
            head.key, epoch=head.epoch, nonce=head.nonce, expected_version=head.version
        )
        points = await store.sessions.restore_points(head.key)
        assert [(point.version, point.inline_state) for point in points] == [(5, b"5"), (4, b"4")]

    @pytest.mark.parametrize("version", [5, 4, 3])
    async def test_going_back(self, store: store.Store, version: int) -> None:
        """The point's state is the newest again, and it and what came after it are forgotten."""
        head = await _many(store)
        points = await store.sessions.restore_points(head.key)
        (chosen,) = [point for point in points if point.version == version]
        commit = store_samples.commit(
            head, checkpoint=chosen.checkpoint, manifest="m", back_to=version
        )
        await store.sessions.commit(commit)
        head = await store.sessions.head(head.key)
        assert (head.version, head.checkpoint, head.manifest) == (6, chosen.checkpoint, "m")
        taken = await store.sessions.acquire(store_samples.claim(head))
        assert taken.inline_state == chosen.inline_state
        after = await store.sessions.restore_points(head.key)
        assert after[1:] == [point for point in points if point.version < version]

    async def test_going_back_with_another_state(self, store: store.Store) -> None:
        """What the agent made of the state of the point takes its place."""
        head = await _many(store)
        ref = _ref(6, inline=True)
        await store.sessions.commit(
            store_samples.commit(head, checkpoint=ref, inline_state=b"new", back_to=4)
        )
        points = await store.sessions.restore_points(head.key)
        assert [(point.version, point.inline_state) for point in points] == [
            (6, b"new"),
            (3, b"3"),
            (2, b"2"),
        ]

    async def test_going_back_to_nothing(self, store: store.Store) -> None:
        """A version that is no restore point is refused, and nothing changes."""
        head = await _many(store)
        before = await store.sessions.restore_points(head.key)
        with pytest.raises(errors.VersionConflict):
            await store.sessions.commit(
                store_samples.commit(head, checkpoint=_ref(1, inline=True), back_to=1)
            )
        assert await store.sessions.restore_points(head.key) == before
        assert await store.sessions.head(head.key) == head

    async def test_deleting_leaves_none(self, store: store.Store) -> None:
        """They go with the session."""
        head = await _many(store)
        await store.sessions.delete(head.key)
        with pytest.raises(errors.SessionDeleted):
            await store.sessions.restore_points(head.key)
        with pytest.raises(errors.SessionNotFound):
            await store.sessions.restore_points(store_samples.key())

    async def test_inline_state_needs_its_envelope(self, store: store.Store) -> None:
        """A checkpoint that says it is inline comes with its bytes."""
        head = await store_samples.owned(store)
        with pytest.raises(errors.Internal):
            await store.sessions.commit(store_samples.commit(head, checkpoint=_ref(2, inline=True)))


async def _many(store: store.Store) -> records.Head:
    """Return a session of five versions, each but the first with a state of its own."""
    head = await store_samples.owned(store)
    for version in range(2, 6):
        head = await _commit(store, head, inline=str(version).encode())
    return head


async def _commit(
    store: store.Store, head: records.Head, *, inline: bytes | None = b"", **changes: Any
) -> records.Head:
    """Commit a state beside the head, in a blob (None), or none (empty)."""
    if inline != b"":
        changes["checkpoint"] = _ref(head.version + 1, inline=inline is not None)
        changes["inline_state"] = inline
    await store.sessions.commit(store_samples.commit(head, **changes))
    return await store.sessions.head(head.key)


def _ref(version: int, *, inline: bool) -> records.CheckpointRef:
    return records.CheckpointRef(
        version=version,
        epoch=1,
        origin="chat",
        state="b3-" + f"{version:02x}" * 32,
        state_bytes=1,
        inline=inline,
    )
