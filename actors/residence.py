"""One activation at work: takes jobs in order, runs turns, commits, and only then answers.

This is the heart of the session process, without Ray: `torpor.actors.session` puts it into an
actor.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

import msgspec

from torpor import clock, definition, errors, limits, messages, probes
from torpor.actors import (
    agent_thread,
    changes,
    deltas,
    lifecycle,
    mailbox,
    output,
    ownership,
    protocol,
    remains,
    rollback,
    slot_board,
    stopwatch,
    turn_context,
    turn_record,
    usage,
)
from torpor.storage import blobs, digests, records, snapshot, store, workspace_files

log = logging.getLogger(__name__)

#: A session that is asked to leave while messages arrive handles them and tries again, this often.
RELEASE_TRIES_MAX = 8
LEFT = "the session has left this process; ask again"


class Residence:
    """A session that is loaded, on the event loop of its process."""

    def __init__(
        self,
        *,
        owned: ownership.Ownership,
        thread: agent_thread.AgentThread,
        snapshotter: snapshot.Snapshotter,
        captures: output.Captures,
        board: slot_board.SlotBoard,
        store: store.Store,
        blobs: blobs.BlobStore,
        settings: definition.AgentSettings,
        spec: protocol.BootSpec,
        clock: clock.Clock,
        watch: stopwatch.Stopwatch,
    ) -> None:
        self._owned = owned
        self._thread = thread
        self._snapshotter = snapshotter
        self._captures = captures
        self._board = board
        self._store = store
        self._blobs = blobs
        self._settings = settings
        self._spec = spec
        self._key = spec.claim.key
        self._deltas = deltas.Deltas(store.feed, self._key, clock)
        self._clock = clock
        self._watch = watch
        self._history = turn_context.OwnerHistory(owned.history, asyncio.get_running_loop())
        self._mailbox = mailbox.Mailbox(self._key.session)
        self._phase = lifecycle.Phase.BOOTING
        #: Whether the history has been told of this activation.
        self._told = False

    @property
    def epoch(self) -> int:
        """The epoch that this residence was granted."""
        return self._spec.claim.observed_epoch + 1

    def put(self, work: mailbox.Work, **how: object) -> mailbox.Job:
        """Queue work; see `Mailbox.put`."""
        return self._mailbox.put(work, **how)  # type: ignore[arg-type]

    def quiet(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        return not self._mailbox.busy and not len(self._mailbox)

    async def run(self) -> None:
        """Work until the session is given up or lost."""
        self._move(lifecycle.Signal.BOOTED)
        try:
            while self._phase is lifecycle.Phase.IDLE:
                job = await self._mailbox.take()
                if job.expired:
                    late = errors.DeadlineExceeded(session=self._key.session)
                    job.resolve(protocol.refuse(late))
                    continue
                answer = await self._answer(job.work)
                probes.reach(probes.Point.REPLY_BEFORE, session=str(self._key))
                job.resolve(answer)
                if self._phase is lifecycle.Phase.IDLE:
                    await self._tidy()
        finally:
            self._mailbox.close(errors.Fenced(LEFT))
            self._thread.close()

    async def _answer(self, work: mailbox.Work) -> object:
        try:
            try:
                return await self._dispatch(work)
            finally:
                # What is refused speaks of what was found with the claim, too.
                if self._phase is lifecycle.Phase.IDLE:
                    async with self._ending_if_lost():
                        await self._owned.settle()
        except errors.TorporError as error:
            return protocol.refuse(error)
        except Exception:
            log.exception("work failed", extra={"action": "work_failed", "session": str(self._key)})
            await self._spoil()
            return protocol.refuse(errors.Internal(session=self._key.session))

    async def _dispatch(self, work: mailbox.Work) -> object:
        self._watch.restart()
        match work:
            case protocol.Deliver():
                await self._demand_version(work.min_version)
                return await self._deliver(work.message, work.body_digest)
            case protocol.DrainInbox():
                await self._drain_inbox()
                return None
            case protocol.PlaceFile():
                return await self._place_file(work)
            case protocol.Control(verb=protocol.Verb.EVICT) | protocol.Leave():
                return await self._leave()
            case protocol.Control():
                return await self._set_paused(paused=work.verb is protocol.Verb.PAUSE)

    # --- messages ---------------------------------------------------------------------------------

    async def _deliver(self, message: messages.Message, body_digest: str) -> protocol.Delivered:
        known = self._owned.remembered(message.request_id, body_digest)
        if known is not None and known.state is records.OutcomeState.PENDING:
            await self._drain_inbox()
            known = self._owned.remembered(message.request_id, body_digest)
            if known is not None and known.state is records.OutcomeState.PENDING:
                # What waited before it ended the session here.
                self._demand_residence()
        if known is not None and known.state is not records.OutcomeState.PENDING:
            return turn_record.reply(await self._owned.history.answer(known), repeated=True)
        if self._owned.head.status is records.Status.PAUSED:
            raise errors.SessionPaused(session=self._key.session)
        return await self._turn(message, body_digest, consumed=())

    async def _demand_version(self, seen: int) -> None:
        if self._owned.head.version >= seen:
            return
        # Another may have taken the session over and gone on.
        async with self._ending_if_lost():
            await self._owned.confirm()
        rollback.demand(self._owned.head, seen)

    def _demand_residence(self) -> None:
        if self._phase is not lifecycle.Phase.IDLE:
            raise errors.Fenced(LEFT)

    async def _drain_inbox(self) -> None:
        """Handle what was accepted, in order; what a paused session was sent waits."""
        for item in await self._store.sessions.inbox(self._key):
            paused = self._owned.head.status is records.Status.PAUSED
            if self._phase is not lifecycle.Phase.IDLE or (paused and item.forgotten is None):
                return
            await self._handle_item(item)
        # Looks again after removing the hint: what arrived meanwhile is hinted anew, and swept.
        await self._store.wake.clear(self._key)

    async def _handle_item(self, item: records.InboxItem) -> None:
        request_id = item.message.request_id
        known = self._owned.outcomes.get(request_id)
        if known is not None and known.state is not records.OutcomeState.PENDING:
            # It was handled before its acceptance was repeated; only the item is left to remove.
            again = changes.Change(consumed=(request_id,), known={request_id: known})
            await self._commit(again)
            return
        if item.forgotten is not None:
            await self._commit(turn_record.recovered(item, item.forgotten, self._owned.claimed))
            return
        if self._owned.head.fruitless > limits.FRUITLESS_CLAIMS_MAX:
            error = errors.MessageGivenUp(session=self._key.session, request_id=request_id)
            await self._commit(turn_record.given_up(item, error))
            return
        await self._turn(item.message, item.body_digest, consumed=(request_id,))

    async def _turn(
        self, message: messages.Message, body_digest: str, *, consumed: tuple[str, ...]
    ) -> protocol.Delivered:
        self._move(lifecycle.Signal.BEGAN)
        began_s, cpu_before_ms = time.monotonic(), usage.cpu_ms()
        ctx = turn_context.TurnContext(
            key=self._key,
            turn=self._owned.head.version + 1,
            workspace=self._spec.slot / protocol.WORKSPACE,
            history=self._history,
            stream=self._deltas.add_from_any_thread,
        )
        try:
            result = await self._thread.run_turn(
                ctx, message, self._snapshotter, timeout_s=self._settings.turn_timeout_s
            )
        except errors.TorporError:
            await self._spoil()
            raise
        used = usage.after_turn(
            self._owned.head.usage,
            cpu_ms=usage.cpu_ms() - cpu_before_ms,
            busy_ms=int((time.monotonic() - began_s) * 1000),
        )
        change = turn_record.change(
            message,
            body_digest,
            result,
            printed=self._captures.take(),
            emitted=ctx.emitted,
            consumed=consumed,
            usage=used,
        )
        committed = await self._commit(change)
        if isinstance(result, agent_thread.TurnResult):
            self._snapshotter.adopt(result.snapshot.tree)
        else:
            # The agent object and the files hold half a turn; only a fresh process has the turn's
            # start.
            await self._spoil()
        return turn_record.reply(turn_record.answer(change, committed), repeated=False)

    # --- everything else --------------------------------------------------------------------------

    async def _place_file(self, work: protocol.PlaceFile) -> protocol.Placed:
        body_digest = f"{work.digest}/{work.mode:o}/{digests.of(work.path.encode())}"
        known = self._owned.remembered(work.request_id, body_digest)
        if known is not None:
            return protocol.Placed(version=known.version)
        self._move(lifecycle.Signal.BEGAN)
        try:
            taken = await asyncio.wait_for(
                self._thread.call(self._placed(work)), self._settings.turn_timeout_s
            )
        except TimeoutError:
            await self._spoil()
            raise errors.OwnerUnreachable(
                "something that the agent started keeps its thread busy; the session starts anew",
                session=self._key.session,
            ) from None
        except errors.TorporError:
            try:
                # It may speak of the files that were found with the claim.
                await self._owned.settle()
            finally:
                await self._spoil()
            raise
        written = {"path": work.path, "size_bytes": work.size_bytes, "digest": work.digest}
        draft = turn_context.Draft(type=messages.WORKSPACE_WRITTEN, data=written)
        change = changes.Change(
            drafts=(draft,),
            manifest=taken.manifest,
            request_id=work.request_id,
            body_digest=body_digest,
        )
        committed = await self._commit(change)
        self._snapshotter.adopt(taken.tree)
        return protocol.Placed(version=committed.version)

    async def _placed(self, work: protocol.PlaceFile) -> snapshot.Snapshot:
        workspace_files.place(
            self._spec.slot / protocol.WORKSPACE,
            work.path,
            self._blobs,
            self._key.tenant,
            work.digest,
            work.mode,
        )
        return self._snapshotter.snapshot()

    async def _set_paused(self, *, paused: bool) -> protocol.Controlled:
        wanted = records.Status.PAUSED if paused else records.Status.IDLE
        if self._owned.head.status is wanted:
            return protocol.Controlled(version=self._owned.head.version)
        kind = messages.SESSION_PAUSED if paused else messages.SESSION_RESUMED
        self._move(lifecycle.Signal.BEGAN)
        committed = await self._commit(
            changes.Change(drafts=(turn_context.Draft(type=kind, data={}),), status=wanted)
        )
        if not paused and self._phase is lifecycle.Phase.IDLE:
            await self._drain_inbox()
        return protocol.Controlled(version=committed.version)

    async def _leave(self) -> protocol.Controlled:
        """Give the session up in order; what arrives meanwhile is handled first."""
        for _ in range(RELEASE_TRIES_MAX):
            self._move(lifecycle.Signal.ASKED_TO_LEAVE)
            try:
                released = await self._owned.release()
            except (errors.Fenced, errors.SessionDeleted):
                self._move(lifecycle.Signal.FENCED)
                raise
            except errors.TorporError as error:
                self._move(lifecycle.Signal.CALLED_BACK)
                if isinstance(error, errors.VersionsLost):
                    await self._spoil()
                raise
            if released:
                self._move(lifecycle.Signal.RELEASED)
                await self._thread.evict()
                await self._leave_workspace()
                return protocol.Controlled(version=self._owned.head.version)
            self._move(lifecycle.Signal.CALLED_BACK)
            await self._drain_inbox()
            if self._phase is lifecycle.Phase.ENDED:
                return protocol.Controlled(version=self._owned.head.version)
        raise errors.NotEvictable("messages keep arriving", session=self._key.session)

    async def _leave_workspace(self) -> None:
        """Leave the files for a wake on this node; one that does not find them restores them."""
        tree = self._snapshotter.adopted
        if tree.digest != self._owned.head.manifest:
            return
        try:
            await asyncio.to_thread(
                remains.leave,
                self._spec.slot,
                self._key,
                tree,
                self._snapshotter.restored,
                self._clock.now_ms(),
            )
        except OSError as error:
            log.warning("files not left: %s", error, extra={"action": "files_not_left"})

    async def _commit(self, change: changes.Change) -> records.Committed:
        """Commit from phase WORKING (or IDLE, for bookkeeping); a failure ends this activation."""
        if self._phase is lifecycle.Phase.IDLE:
            self._move(lifecycle.Signal.BEGAN)
        telling = not self._told and bool(change.drafts)
        if telling:
            change = msgspec.structs.replace(change, drafts=(self._woken(), *change.drafts))
        try:
            committed = await self._owned.commit(change)
        except (errors.Fenced, errors.SessionDeleted):
            self._move(lifecycle.Signal.FENCED)
            raise
        except errors.TorporError:
            await self._spoil()
            raise
        self._told |= telling
        self._move(lifecycle.Signal.COMMITTED)
        if committed.duplicate:
            # Its answer was lost, and to learn it the session was claimed anew, under another epoch
            # than callers know this process by.
            await self._spoil()
        return committed

    def _woken(self) -> turn_context.Draft:
        """Return the event that begins this activation, with what the wake has taken."""
        self._watch.lap("first_turn")
        data = {"node": self._spec.node_name, "epoch": self.epoch, "took_ms": self._watch.laps_ms}
        return turn_context.Draft(type=messages.SESSION_WOKEN, data=data)

    async def _tidy(self) -> None:
        """Between jobs: keep the hot tail bounded. A failure here costs nothing but another try."""
        try:
            async with self._ending_if_lost():
                await self._owned.seal_if_longer_than(limits.HOT_EVENTS_MAX)
        except errors.TorporError as error:
            log.warning("not sealed: %s", error, extra={"action": "seal_failed"})

    @contextlib.asynccontextmanager
    async def _ending_if_lost(self) -> AsyncIterator[None]:
        try:
            yield
        except (errors.Fenced, errors.SessionDeleted):
            self._move(lifecycle.Signal.FENCED)
            raise
        except errors.VersionsLost:
            await self._spoil()
            raise

    async def _spoil(self) -> None:
        """End this activation: what memory holds is not what the store holds."""
        if self._phase is lifecycle.Phase.ENDED:
            return
        self._move(lifecycle.Signal.SPOILT)
        await self._owned.abandon()

    def _move(self, signal: lifecycle.Signal) -> None:
        self._phase = lifecycle.after(self._phase, signal)
        self._board.show(self._phase, turns_more=signal is lifecycle.Signal.COMMITTED)
