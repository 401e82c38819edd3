"""Handing calls to whoever owns a session, wherever that is by now."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from torpor import errors, limits, messages
from torpor.actors import calls, protocol
from torpor.router import activator, deadline, directory, doubt, office
from torpor.storage import records, store

T = TypeVar("T")

#: Owners that may fail to answer within one call, one after the other: more is no accident.
UNREACHABLE_MAX = 4
#: Nodes on which a session may fail to load: a broken node must not stop a session, nor a broken
#: session go through all nodes.
LOADS_TRIED_MAX = 2
#: What only an owner says that has loaded its session: the hint of it stays.
OF_A_LOADED_OWNER = (
    errors.DeadlineExceeded,
    errors.DedupFull,
    errors.MailboxFull,
    errors.RequestIdReused,
    errors.SessionBusy,
    errors.SessionPaused,
)
#: Processes that may die under one message: what it does outside, it does again each time.
DEATHS_MAX = 3


class Router:
    """The way from a gateway to the owners of sessions."""

    def __init__(
        self,
        sessions: store.Sessions,
        reach: calls.Calls,
        wake: activator.Activator,
        hints: directory.Directory,
        calls_in_office: office.Office,
    ) -> None:
        self._sessions = sessions
        self._calls = reach
        self._activator = wake
        self._directory = hints
        self._office = calls_in_office

    async def deliver(
        self,
        key: records.SessionKey,
        message: messages.Message,
        *,
        body_digest: str,
        busy: protocol.BusyPolicy,
        min_version: int,
        until: deadline.Deadline,
    ) -> protocol.Delivered:
        """Hand a message to the owner and return the committed turn; wakes the session.

        Repeating is safe at any point: the owner knows the request id.

        Raises:
            SessionPaused, SessionBusy, MailboxFull, RequestIdReused, DedupFull
            MessageGivenUp: `DEATHS_MAX` owners died, one after the other, or did not answer.
            VersionsLost: the session is older than `min_version`: committed turns were lost.
            what `reach` raises
        """
        asked: set[str] = set()
        #: Epochs: one that was never claimed had nobody who handled anything, and comes again.
        died_under_it: set[int] = set()

        async def ask(seat: protocol.Seat, left_s: float) -> protocol.Delivered:
            died = len(died_under_it - {seat.epoch})
            # The last of them may have died after its commit.
            if died >= DEATHS_MAX and not await handled():
                raise errors.MessageGivenUp(
                    f"{DEATHS_MAX} processes died while they woke for this message, or handled it",
                    session=key.session,
                    tenant=key.tenant,
                )
            request = protocol.Deliver(
                epoch=seat.epoch,
                message=message,
                body_digest=body_digest,
                min_version=min_version,
                # Asked again, the owner may be busy with this very message.
                busy=protocol.BusyPolicy.ENQUEUE if seat.nonce in asked else busy,
                deadline_s=left_s,
            )
            asked.add(seat.nonce)
            try:
                return await self._calls.deliver(seat, request, timeout_s=left_s)
            except errors.OwnerUnreachable:
                died_under_it.add(seat.epoch)
                raise

        async def handled() -> bool:
            known = await self._sessions.outcome(key, message.request_id)
            return known is not None and known.state is not records.OutcomeState.PENDING

        async def unless_handled() -> None:
            if not await handled():
                raise errors.SessionPaused(session=key.session, tenant=key.tenant)

        return await self.reach(key, until, ask, if_paused=unless_handled)

    async def place_file(
        self,
        key: records.SessionKey,
        *,
        path: str,
        digest: str,
        size_bytes: int,
        mode: int,
        request_id: str,
        until: deadline.Deadline,
    ) -> protocol.Placed:
        """Put an uploaded blob into the workspace through the owner; wakes the session.

        Raises:
            PathOutsideWorkspace, WorkspaceQuotaExceeded
            what `reach` raises
        """

        async def ask(seat: protocol.Seat, left_s: float) -> protocol.Placed:
            request = protocol.PlaceFile(
                epoch=seat.epoch,
                path=path,
                digest=digest,
                size_bytes=size_bytes,
                mode=mode,
                request_id=request_id,
                deadline_s=left_s,
            )
            return await self._calls.place_file(seat, request, timeout_s=left_s)

        return await self.reach(key, until, ask)

    async def drain_inbox(self, key: records.SessionKey, until: deadline.Deadline) -> None:
        """Have the owner look into its inbox; wakes the session.

        The head is read anew: an owner that it names now cannot leave before it has looked, but one
        that a hint names may have left, and would take the call without a word.

        Raises:
            what `reach` raises
        """
        hint = self._directory.get(key)
        if hint is not None:
            self._directory.forget(key, hint.epoch)

        async def ask(seat: protocol.Seat, left_s: float) -> None:
            await self._calls.drain_inbox(seat, timeout_s=left_s)

        async def refuse() -> None:
            raise errors.SessionPaused(session=key.session, tenant=key.tenant)

        await self.reach(key, until, ask, if_paused=refuse)

    async def reach(
        self,
        key: records.SessionKey,
        until: deadline.Deadline,
        ask: Callable[[protocol.Seat, float], Awaitable[T]],
        *,
        if_paused: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Ask the owner, following the session when it has moved or its owner is gone.

        `ask` gets the owner and the seconds left. It may be called again for another owner.
        `if_paused` may refuse, before a paused session is woken.

        Raises:
            Fenced: the session moved more than `FORWARDS_MAX` times meanwhile.
            ActivationFailed: it could not be loaded on `LOADS_TRIED_MAX` nodes.
            OwnerUnreachable, DeadlineExceeded
            OutcomeUnknown: it was refused now, but an owner that was asked before did not answer.
            what `ask`, `if_paused` and `Activator.locate` raise
        """
        stale = unreachable = loads = 0
        suspect: protocol.Seat | None = None
        broken: dict[str, errors.ActivationFailed] = {}
        while True:
            with doubt.in_doubt(unreachable > 0, key):
                seat = self._directory.get(key)
                if seat is None:
                    seat = await self._locate(key, until, suspect, broken, if_paused)
                try:
                    owner = seat.owner
                    async with self._office.during(owner.node, owner.incarnation):
                        return await ask(seat, until.demand())
                except errors.Fenced:
                    self._directory.forget(key, seat.epoch)
                    stale += 1
                    if stale > limits.FORWARDS_MAX:
                        raise
                except errors.ActivationFailed as error:
                    self._directory.forget(key, seat.epoch)
                    broken[owner.node] = error
                    loads += 1
                    if loads >= LOADS_TRIED_MAX:
                        raise
                except errors.OwnerUnreachable:
                    self._directory.forget(key, seat.epoch)
                    suspect = seat
                    unreachable += 1
                    if until.left_s() <= 0:
                        self._activator.suspect(key, seat.epoch)
                        raise errors.DeadlineExceeded(
                            session=key.session, tenant=key.tenant
                        ) from None
                    if unreachable >= UNREACHABLE_MAX:
                        raise
                except OF_A_LOADED_OWNER:
                    raise
                except errors.TorporError:
                    # Perhaps it could not be loaded, and ends: who asks again finds another.
                    self._directory.forget(key, seat.epoch)
                    raise

    async def _locate(
        self,
        key: records.SessionKey,
        until: deadline.Deadline,
        suspect: protocol.Seat | None,
        broken: Mapping[str, errors.ActivationFailed],
        if_paused: Callable[[], Awaitable[None]] | None,
    ) -> protocol.Seat:
        head = await self._sessions.head(key)
        if if_paused is not None and head.status is records.Status.PAUSED:
            await if_paused()
        if suspect is not None and head.nonce not in ("", suspect.nonce):
            # Of one epoch another may have won the claim.
            suspect = None
        try:
            return await self._activator.locate(
                key,
                until,
                suspect_epoch=0 if suspect is None else suspect.epoch,
                head=head,
                excluded=broken,
            )
        except errors.NoCapacity as full:
            # That one node could not load it says more.
            raise next(iter(broken.values()), full) from None
