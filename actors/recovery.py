"""Bringing a session back as it was, or, where it is damaged, as it last was whole.

What is damaged does not hash to its name, or is missing from a storage that is proven to be there.
The newest restore point that is whole is taken, state and files of one version. If none is, the
newest whose state is whole, without the files that are not. If no state is, nothing is changed.

One commit makes a recovery true: the event that says what is lost, what the head names from now on,
and what the agent's `on_recover` made of it. A process that dies before it leaves the session as it
was, and the next one recovers it in the same way.
"""

import asyncio
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Sequence

import msgspec

from torpor import definition, errors, loss, messages
from torpor.actors import agent_thread, changes, output, ownership, stopwatch, turn_context
from torpor.storage import (
    blobs,
    digests,
    kept_workspaces,
    records,
    restore,
    snapshot,
    state,
    storage_proof,
    store,
    workspace_tree,
)

log = logging.getLogger(__name__)

#: In `session.recovered`: why.
REASON = "damaged_checkpoint"
#: Paths that event and agent are told, so that the event stays small.
FILES_NAMED_MAX = 1_000
#: What says that stored bytes are not what they were.
DAMAGE = (errors.BlobCorrupt, errors.BlobMissing, errors.CheckpointCorrupt)
REMEDY = (
    "No version of the state that is still kept is whole, so the session stays as it is. Bring the "
    "named blob back from a backup of the shared storage, or the store from one of its own; then "
    "it wakes"
)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A version that was brought back: its files are in place, its state is verified."""

    point: records.RestorePoint
    #: The agent, pickled; None before the first turn.
    payload: memoryview | None
    #: Of the files on the disk.
    tree: workspace_tree.Folder
    #: Paths that are damaged.
    left_out: Sequence[str] = ()
    #: What was wrong with what the head names; None if nothing is.
    error: errors.TorporError | None = None


class Waking:
    """One session on its way back into a process that has claimed it."""

    def __init__(
        self,
        owned: ownership.Ownership,
        store: store.Store,
        blobs: blobs.BlobStore,
        workspace: pathlib.Path,
        quota_bytes: int,
    ) -> None:
        self._owned = owned
        self._store = store
        self._blobs = blobs
        self._workspace = workspace
        self._key = owned.head.key
        self.snapshotter = snapshot.Snapshotter(workspace, blobs, self._key.tenant, quota_bytes)

    async def wake(
        self,
        acquired: records.Acquired,
        make: Callable[[], definition.Agent],
        watch: stopwatch.Stopwatch,
    ) -> agent_thread.AgentThread:
        """Bring files and state back and make them true; `make` makes an agent that has no state.

        Raises:
            BlobCorrupt, BlobMissing, CheckpointCorrupt: no state is whole; nothing was changed.
            StorageUnavailable: also if the shared storage is perhaps not there.
            CheckpointIncompatible, AgentImportFailed: the state is sound, and cannot be loaded.
            Fenced, StoreUnavailable, StorageFull
        """
        found = await self._bring_back(acquired)
        watch.lap("restore")
        # The files come first: loading the state may look for them.
        os.chdir(self._workspace)
        self.snapshotter.adopt(found.tree)
        thread = agent_thread.AgentThread()
        payload = found.payload
        try:
            await thread.wake(make if payload is None else functools.partial(state.load, payload))
            watch.lap("load")
            if found.error is not None:
                await self._make_true(found, found.error, thread)
        except BaseException:
            thread.close()
            raise
        return thread

    async def _bring_back(self, acquired: records.Acquired) -> Found:
        head = acquired.head
        newest = records.RestorePoint(
            version=head.version,
            next_seq=head.next_seq,
            checkpoint=head.checkpoint,
            manifest=head.manifest,
            at_ms=head.updated_ms,
            inline_state=acquired.inline_state,
        )
        try:
            return await asyncio.to_thread(self._whole, newest)
        except DAMAGE as error:
            log.error("%s cannot wake: %s", self._key, error, extra={"action": "damaged"})
            return await self._search(error)

    async def _search(self, error: errors.TorporError) -> Found:
        """Return what to wake from instead; the storage is there before the search and after it."""
        await storage_proof.prove(self._store.catalog, self._blobs)
        points = await self._store.sessions.restore_points(self._key)
        found = await asyncio.to_thread(self._best, points)
        await storage_proof.prove(self._store.catalog, self._blobs)
        if found is None:
            raise type(error)(f"{error.message}. {REMEDY}", **error.ids) from error
        if found.point.version == self._owned.head.version and not found.left_out:
            # It was put right meanwhile.
            return found
        return msgspec.structs.replace(found, error=error)

    def _best(self, points: Sequence[records.RestorePoint]) -> Found | None:
        """Bring back as much as there is; None if no state is whole. Blocks."""
        sound: list[records.RestorePoint] = []
        for point in points:
            try:
                payload = self._state(point)
                sound.append(point)
                return self._with_files(point, payload)
            except DAMAGE as error:
                if _signed_with_another_key(error, point):
                    raise
        if not sound:
            return None
        payload, left_out = self._state(sound[0]), list[str]()
        tree = restore.restore(
            sound[0].manifest, self._workspace, self._blobs, self._key.tenant, left_out=left_out
        )
        return Found(point=sound[0], payload=payload, tree=tree, left_out=sorted(left_out))

    def _state(self, point: records.RestorePoint) -> memoryview | None:
        return self._owned.checkpoints.read(point.checkpoint, point.inline_state)

    def _whole(self, point: records.RestorePoint) -> Found:
        return self._with_files(point, self._state(point))

    def _with_files(self, point: records.RestorePoint, payload: memoryview | None) -> Found:
        """Bring all files of a version back, or none."""
        slot, tenant = self._workspace.parent, self._key.tenant
        tree = kept_workspaces.put_back(slot, self._key, point.manifest, self._blobs)
        if tree is None:
            tree = restore.restore(point.manifest, self._workspace, self._blobs, tenant)
        self.snapshotter.watch(tree)
        return Found(point=point, payload=payload, tree=tree)

    async def _make_true(
        self, found: Found, error: errors.TorporError, thread: agent_thread.AgentThread
    ) -> None:
        head, lost = self._owned.head, _lost(self._owned.head, found)
        kept = await thread.recover(lost, self.snapshotter)
        committed = await self._owned.commit(
            changes.Change(
                drafts=(_event(head, lost, error),),
                state=kept.state,
                manifest=kept.snapshot.manifest,
                back_to=found.point,
            )
        )
        if committed.duplicate:
            # To learn it the session was claimed anew, under another epoch than callers know.
            raise errors.StoreUnavailable(
                "the store was away while the session was recovered", session=self._key.session
            )
        self.snapshotter.adopt(kept.snapshot.tree)
        log.warning(
            "%s went back from version %d to %d",
            self._key,
            lost.from_version,
            lost.to_version,
            extra={"action": "recovered", "files_left_out": lost.files_total},
        )


def _signed_with_another_key(error: errors.TorporError, point: records.RestorePoint) -> bool:
    """Whether the bytes are those that were named, so that only the keys here can be wrong.

    A blob was compared with its name before; what lies in the store is compared here.
    """
    named, inline = point.checkpoint, point.inline_state
    if not isinstance(error, errors.CheckpointCorrupt) or named is None:
        return False
    return not named.inline or (inline is not None and digests.of(inline) == named.state)


def _lost(head: records.Head, found: Found) -> loss.Lost:
    point, paths = found.point, [output.utf8(path) for path in found.left_out]
    gone = (point.version + 1, head.version) if point.version < head.version else ()
    return loss.Lost(
        from_version=head.version,
        to_version=point.version,
        versions=gone,
        state=point.checkpoint != head.checkpoint,
        files=tuple(paths[:FILES_NAMED_MAX]),
        files_total=len(paths),
    )


def _event(head: records.Head, lost: loss.Lost, error: errors.TorporError) -> turn_context.Draft:
    data = {
        "reason": REASON,
        "from_version": lost.from_version,
        "to_version": lost.to_version,
        "lost": {
            "versions": list(lost.versions),
            "state": lost.state,
            "files": list(lost.files),
            "files_total": lost.files_total,
        },
        "quarantined": {
            "version": head.version,
            "state": "" if head.checkpoint is None else head.checkpoint.state,
            "manifest": head.manifest,
        },
        "error": {"reason": error.reason, "message": output.utf8(error.message)},
    }
    return turn_context.Draft(type=messages.SESSION_RECOVERED, data=data)
