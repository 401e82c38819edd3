"""Holding a session: the claim, the mirror of its head, and the commits.

The mirror is right because nobody else can write while this epoch and nonce stand in the head; the
moment that stops being so, the next write says `Fenced` and the process ends.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import msgspec

from torpor import clock, errors, ids, limits, messages, probes
from torpor.actors import changes, checkpoints, loss_report, outcomes, rollback
from torpor.storage import blobs, history, keyring, records, segments, storage_proof, store

#: An owner whose commit's answer was lost asks this often what became of it; with the pauses
#: between, about as long as a store takes to restart.
RESOLVE_TRIES_MAX = 12
RESOLVE_PAUSE_S = 0.5


class Ownership:
    """One epoch of one session, in the process that owns it."""

    def __init__(
        self,
        *,
        store: store.Store,
        blobs: blobs.BlobStore,
        keys: keyring.TenantKeys,
        clock: clock.Clock,
        agent: records.AgentVersion,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._keys = keys
        self._clock = clock
        self._claim: records.Acquire
        self.checkpoints = checkpoints.Checkpoints(blobs, keys, agent)
        #: As it was found, and as it is now.
        self.claimed: records.Head
        self.head: records.Head
        #: What is remembered of requests: beside the hot tail, and of the last hour in cold
        #: segments.
        self.outcomes: dict[str, records.Outcome] = {}
        self._beside_hot: set[str] = set()
        self.history: history.History
        self._newest: messages.Event | None = None
        #: Waits until the claim is durable; None once a commit has waited for that.
        self._flushing: asyncio.Task[None] | None = None

    async def claim(self, claim: records.Acquire) -> records.Acquired:
        """Become the owner.

        Raises:
            Fenced: somebody else came first.
            SessionNotFound, SessionDeleted, StoreUnavailable
            StorageUnavailable: nothing is owned.
            BlobCorrupt, BlobMissing, HistoryGap: the history of the last hour is damaged; nothing
                is owned.
        """
        self._claim = claim
        async with self._told_once_durable():
            acquired = await self._acquire(claim, durable=False)
        self.claimed = self.head = acquired.head
        # Meanwhile it can be loaded.
        self._flushing = asyncio.create_task(self._store.sessions.flush())
        self._flushing.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.history = history.History(self._store.sessions, self._blobs, claim.key)
        if acquired.hot:
            self._newest = msgspec.structs.replace(acquired.hot[-1], data={})
        self.outcomes = dict(acquired.outcomes)
        self._beside_hot = set(acquired.outcomes)
        if acquired.head.cold_index:
            since_ms = self._clock.now_ms() - limits.DEDUP_KEEP_MS
            try:
                # What history says was done stays done, though the same request may wait again.
                self.outcomes |= await self.history.recent_outcomes(since_ms)
            except errors.DataLoss as error:
                try:
                    await self.settle()
                finally:
                    await self.abandon()
                await storage_proof.prove(self._store.catalog, self._blobs)
                raise type(error)(
                    f"{error.message}. It says which requests of the last hour were handled, and "
                    "none is to be handled twice: bring it back from a backup of the storage",
                    **error.ids,
                ) from error
            except BaseException:
                await self.abandon()
                raise
        return acquired

    async def settle(self) -> None:
        """Return once the claim is durable, and all that was found with it.

        Raises:
            what `confirm` raises
        """
        if self._flushing is not None:
            await self.confirm()

    def read_state(self, acquired: records.Acquired) -> memoryview | None:
        """Return the verified pickle of the agent, None before the first turn. Blocks.

        Raises:
            CheckpointCorrupt, BlobCorrupt, BlobMissing, StorageUnavailable
            CheckpointIncompatible: another Python minor wrote it.
        """
        return self.checkpoints.read(acquired.head.checkpoint, acquired.inline_state)

    def remembered(self, request_id: str, body_digest: str) -> records.Outcome | None:
        """Return what is known of a request.

        Raises:
            RequestIdReused: it had another body.
            DedupFull: it is new, and nothing more can be remembered this hour.
        """
        known = self.outcomes.get(request_id)
        if known is None:
            if len(self.outcomes) >= limits.DEDUP_MAX:
                self.outcomes = outcomes.worth_keeping(self.outcomes, self._clock.now_ms())
            if len(self.outcomes) >= limits.DEDUP_MAX:
                raise errors.DedupFull(session=self.head.key.session)
        elif known.body_digest != body_digest:
            raise errors.RequestIdReused(
                f"request id {request_id} was used before with a different message",
                session=self.head.key.session,
                request_id=request_id,
            )
        return known

    async def commit(self, change: changes.Change) -> records.Committed:
        """Make a change true; afterwards the mirror shows it.

        Raises:
            Fenced, SessionDeleted: this process must end.
            StoreReadOnly, StoreUnavailable: nothing happened.
            OutcomeUnknown: it may have; memory and store may differ, so this process must end.
            VersionsLost: the store went back to an earlier state; nothing happened, and this
                process must end.
            StorageFull, StorageUnavailable: a large state could not be stored; nothing happened.
        """
        commit = await self._numbered(change)
        async with self._telling_losses():
            try:
                self._reach(probes.Point.COMMIT_BEFORE, commit)
                committed = await self._store.sessions.commit(commit)
            except errors.OutcomeUnknown:
                committed = await self._resolve(commit)
        self._reach(probes.Point.COMMIT_AFTER, commit)
        self._mirror(commit, change)
        return committed

    async def confirm(self) -> None:
        """Make sure that the store knows this owner, and durably.

        Raises:
            Fenced, SessionDeleted, VersionsLost: this process must end.
            StoreUnavailable
        """
        if self._flushing is not None:
            try:
                await asyncio.shield(self._flushing)
            except errors.Unavailable:
                await self._store.sessions.flush()
        async with self._told_once_durable(), self._telling_losses():
            # Meanwhile it may have become another server that lacks the claim.
            stored = await self._store.sessions.head(self.head.key)
            if stored.nonce != self.head.nonce or rollback.went_back(self.head, stored):
                raise errors.Fenced(session=self.head.key.session)
        self._flushing = None

    async def release(self) -> bool:
        """Give the session up in order, sealing a long tail; False while the inbox holds something.

        Raises:
            Fenced, StoreUnavailable
            VersionsLost: the store went back to an earlier state; this process must end.
        """
        async with self._telling_losses():
            # A long tail costs memory of the store; shared storage that fails must not keep the
            # session in a process, too.
            with contextlib.suppress(
                errors.StorageFull, errors.StorageUnavailable, errors.DataLoss
            ):
                await self._seal_if_longer_than(limits.HOT_EVENTS_ASLEEP_MAX)
            probes.reach(probes.Point.RELEASE_BEFORE, session=str(self.head.key))
            released = await self._store.sessions.release(
                self.head.key,
                epoch=self.head.epoch,
                nonce=self.head.nonce,
                expected_version=self.head.version,
            )
        if released:
            self._flushing = None
            probes.reach(probes.Point.RELEASE_AFTER, session=str(self.head.key))
        return released

    async def abandon(self) -> None:
        """Give the session up whatever its inbox holds: the last act of a spoilt process."""
        # If the store is away now, others clear the owner once they have seen the process end.
        with contextlib.suppress(errors.TorporError):
            await self._store.sessions.vacate(
                self.head.key,
                epoch=self.head.epoch,
                incarnation=self._claim.owner.incarnation,
                nonce=self.head.nonce,
                died=False,
            )

    async def seal_if_longer_than(self, events: int) -> None:
        """Move the hot tail's older part into cold segments if the tail is longer than `events`.

        Raises:
            Fenced, VersionsLost: this process must end.
            StoreUnavailable, StorageFull, StorageUnavailable, DataLoss
        """
        async with self._telling_losses():
            await self._seal_if_longer_than(events)

    async def _seal_if_longer_than(self, events: int) -> None:
        head = self.head
        if head.next_seq - head.hot_from <= events:
            return
        probes.reach(probes.Point.SEAL_BEFORE, session=str(head.key))
        upto = head.next_seq - limits.HOT_EVENTS_KEPT
        run = await self.history.read(after=head.hot_from - 1, limit=upto - head.hot_from)
        if len(run) < upto - head.hot_from:
            raise errors.VersionConflict(session=head.key.session)
        boundary = run[-1].seq + 1
        cold_index = await asyncio.to_thread(
            segments.seal, self._blobs, self._keys.tenant, head.cold_index, run
        )
        forgotten = [
            rid
            for rid in self._beside_hot
            if (known := self.outcomes.get(rid)) is None or 0 < known.seq < upto
        ]
        await self._store.sessions.seal(
            records.Seal(
                key=head.key,
                epoch=head.epoch,
                nonce=head.nonce,
                hot_from=head.hot_from,
                new_hot_from=boundary,
                cold_index=cold_index,
                forgotten=forgotten,
            )
        )
        probes.reach(probes.Point.SEAL_AFTER, session=str(head.key), hot_from=boundary)
        self._beside_hot.difference_update(forgotten)
        self.head = msgspec.structs.replace(head, hot_from=boundary, cold_index=cold_index)
        self.outcomes = outcomes.worth_keeping(self.outcomes, self._clock.now_ms())

    async def _acquire(self, claim: records.Acquire, *, durable: bool = True) -> records.Acquired:
        probes.reach(probes.Point.ACQUIRE_BEFORE, session=str(claim.key))
        acquired = await self._store.sessions.acquire(claim, durable=durable)
        probes.reach(
            probes.Point.ACQUIRE_AFTER,
            session=str(claim.key),
            epoch=acquired.head.epoch,
            nonce=claim.nonce,
            version=acquired.head.version,
            node=claim.owner.node,
        )
        return acquired

    def _reach(self, point: probes.Point, commit: records.Commit) -> None:
        probes.reach(
            point,
            session=str(commit.key),
            epoch=commit.epoch,
            nonce=commit.nonce,
            version=commit.expected_version + 1,
            commit_id=commit.commit_id,
            requests=list(commit.outcomes),
        )

    async def _numbered(self, change: changes.Change) -> records.Commit:
        head = self.head
        version, at_ms = head.version + 1, self._clock.now_ms()
        events = [
            messages.Event(
                seq=head.next_seq + i,
                type=draft.type,
                data=draft.data,
                version=version,
                at_ms=at_ms,
            )
            for i, draft in enumerate(change.drafts)
        ]
        reference, inline = await self.checkpoints.seal(change.state, head, version)
        if change.back_to is not None:
            reference = reference or change.back_to.checkpoint
        return records.Commit(
            key=head.key,
            epoch=head.epoch,
            nonce=head.nonce,
            expected_version=head.version,
            commit_id=ids.nonce(),
            events=events,
            checkpoint=reference,
            inline_state=inline,
            manifest=None if change.manifest == head.manifest else change.manifest,
            back_to=0 if change.back_to is None else change.back_to.version,
            status=change.status,
            usage=change.usage,
            outcomes=change.outcome_of(events, version, at_ms),
            consumed=change.consumed,
            at_ms=at_ms,
        )

    async def _resolve(self, commit: records.Commit) -> records.Committed:
        """Learn what became of a commit whose answer was lost.

        The rule of Temporal's shard owners: claim again first, so that the write can no longer
        land, then read whether it had.
        """
        # One claim for all tries: repeating it is harmless if the answer to it was lost, too.
        claim = msgspec.structs.replace(
            self._claim,
            observed_epoch=self.head.epoch,
            observed_incarnation=self._claim.owner.incarnation,
            nonce=ids.nonce(),
        )
        for _ in range(RESOLVE_TRIES_MAX):
            try:
                acquired = await self._acquire(claim)
            except errors.Unavailable:
                # Jitter, so that all owners of a node do not come back in one moment.
                await self._clock.sleep(RESOLVE_PAUSE_S * (0.5 + random.random()))  # noqa: S311
                continue
            landed = acquired.head.commit_id == commit.commit_id
            known, self.head = self._known(), acquired.head
            if rollback.went_back(known.head, acquired.head) and (lost := await self._lost(known)):
                raise lost
            if landed:
                return records.Committed(
                    version=acquired.head.version, next_seq=acquired.head.next_seq, duplicate=True
                )
            raise errors.StoreUnavailable(
                "the store was away when the turn was to be committed; it was not",
                session=str(commit.key),
            )
        raise errors.OutcomeUnknown(session=str(commit.key))

    @contextlib.asynccontextmanager
    async def _told_once_durable(self) -> AsyncIterator[None]:
        """Say that there is no such session only once that is durable: nobody looks again."""
        try:
            yield
        except errors.NotFound:
            await self._store.sessions.flush()
            raise

    @contextlib.asynccontextmanager
    async def _telling_losses(self) -> AsyncIterator[None]:
        """Let a refusal tell what was lost, if it comes from a store that went back."""
        try:
            yield
        except (errors.VersionConflict, errors.Fenced) as error:
            raise await self._lost(self._known()) or error from None

    async def _lost(self, known: rollback.Known) -> errors.VersionsLost | None:
        report = loss_report.LossReport(self._store, self._clock)
        return await report.compare(self.history, known, nonce=self.head.nonce)

    def _known(self) -> rollback.Known:
        return rollback.Known(
            claimed=self.claimed, head=self.head, newest=self._newest, outcomes=self.outcomes
        )

    def _mirror(self, commit: records.Commit, change: changes.Change) -> None:
        if commit.checkpoint is not None and change.state is not None:
            self.checkpoints.committed(change.state)
        self._flushing = None
        if commit.events:
            self._newest = msgspec.structs.replace(commit.events[-1], data={})
        self.outcomes.update(commit.outcomes)
        self._beside_hot.update(commit.outcomes)
        self.head = msgspec.structs.replace(
            self.head,
            version=commit.expected_version + 1,
            next_seq=commit.events[-1].seq + 1 if commit.events else self.head.next_seq,
            commit_id=commit.commit_id,
            checkpoint=commit.checkpoint or self.head.checkpoint,
            manifest=self.head.manifest if commit.manifest is None else commit.manifest,
            status=commit.status or self.head.status,
            usage=commit.usage or self.head.usage,
            updated_ms=commit.at_ms,
            fruitless=0,
        )
