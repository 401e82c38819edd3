"""What a person decides about a session: evict, pause, resume, delete."""

import asyncio
import contextlib

from torpor import clock, errors, ids, messages
from torpor.actors import calls, protocol
from torpor.router import activator, deadline, directory, doubt, office, standing, waking
from torpor.storage import records, store

#: Times that the session may change under a decision before the caller is told to try again.
ROUNDS_MAX = 6
#: How long the owner of a deleted session may take to leave; it can write nothing more in any case.
GOODBYE_S = 5.0
#: Owners being told to leave at the same time; the others notice at their next commit.
GOODBYES_MAX = 100


class Control:
    """Decisions about sessions, through the owner where there is one."""

    def __init__(
        self,
        stored: store.Store,
        reach: calls.Calls,
        wake: activator.Activator,
        hints: directory.Directory,
        calls_in_office: office.Office,
        waker: waking.Waker,
        time: clock.Clock,
    ) -> None:
        self._store = stored
        self._calls = reach
        self._activator = wake
        self._directory = hints
        self._office = calls_in_office
        self._waker = waker
        self._clock = time
        self._goodbyes: set[asyncio.Task[None]] = set()

    async def evict(
        self, key: records.SessionKey, *, request_id: str, until: deadline.Deadline
    ) -> records.Head:
        """Put the session to sleep; returns its head. A sleeping session is left as it is.

        Raises:
            NotEvictable: messages keep arriving.
            OwnerUnreachable, VersionConflict, DeadlineExceeded
            SessionNotFound, SessionDeleted, StoreUnavailable, StoreReadOnly
        """
        return await self._decide(key, protocol.Verb.EVICT, request_id, until)

    async def pause(
        self, key: records.SessionKey, *, request_id: str, until: deadline.Deadline
    ) -> records.Head:
        """Let the session handle no message until it is resumed; returns its head.

        Raises:
            OwnerUnreachable, VersionConflict, DeadlineExceeded
            SessionNotFound, SessionDeleted, StoreUnavailable, StoreReadOnly
        """
        return await self._decide(key, protocol.Verb.PAUSE, request_id, until)

    async def resume(
        self, key: records.SessionKey, *, request_id: str, until: deadline.Deadline
    ) -> records.Head:
        """Let the session handle messages again, and wake it if some wait; returns its head.

        Raises:
            OwnerUnreachable, VersionConflict, DeadlineExceeded
            SessionNotFound, SessionDeleted, StoreUnavailable, StoreReadOnly
        """
        head = await self._decide(key, protocol.Verb.RESUME, request_id, until)
        # What waits kept its hint; this only saves the time until somebody looks at it.
        if await self._store.sessions.inbox(key):
            self._waker.poke(key)
        return head

    async def delete(self, key: records.SessionKey) -> None:
        """Leave a tombstone and tell the owner to go. Idempotent.

        Raises:
            SessionNotFound, StoreUnavailable, StoreReadOnly
        """
        try:
            head = await self._store.sessions.head(key)
        except errors.SessionDeleted:
            return
        await self._store.sessions.delete(key)
        self._directory.forget(key, head.epoch)
        if head.owner is not None and len(self._goodbyes) < GOODBYES_MAX:
            task = asyncio.create_task(self._say_goodbye(protocol.seat_of(head)))
            self._goodbyes.add(task)
            task.add_done_callback(self._goodbyes.discard)

    async def close(self) -> None:
        """End what is under way."""
        for task in self._goodbyes:
            task.cancel()
        await asyncio.gather(*self._goodbyes, return_exceptions=True)

    async def _decide(
        self,
        key: records.SessionKey,
        verb: protocol.Verb,
        request_id: str,
        until: deadline.Deadline,
    ) -> records.Head:
        suspect_epoch = 0
        for _ in range(ROUNDS_MAX):
            head = await self._store.sessions.head(key)
            if _holds(head, verb):
                return head
            with doubt.in_doubt(suspect_epoch > 0, key):
                try:
                    if head.owner is None:
                        await self._write(head, verb)
                    else:
                        await self._through_owner(protocol.seat_of(head), verb, request_id, until)
                    return await self._store.sessions.head(key)
                except errors.OwnerUnreachable:
                    if suspect_epoch == head.epoch:
                        raise
                    suspect_epoch = head.epoch
                    await self._clear(head, until)
                except (errors.Fenced, errors.VersionConflict, errors.OutcomeUnknown):
                    # Somebody else changed it, or perhaps this did: the head tells.
                    continue
        with doubt.in_doubt(suspect_epoch > 0, key):
            raise errors.VersionConflict(
                "the session kept changing; try again", session=key.session, tenant=key.tenant
            )

    async def _through_owner(
        self,
        seat: protocol.Seat,
        verb: protocol.Verb,
        request_id: str,
        until: deadline.Deadline,
    ) -> None:
        left_s = until.demand()
        request = protocol.Control(
            epoch=seat.epoch, verb=verb, request_id=request_id, deadline_s=left_s
        )
        async with self._office.during(seat.owner.node, seat.owner.incarnation):
            await self._calls.control(seat, request, timeout_s=left_s)
        if verb is protocol.Verb.EVICT:
            self._directory.forget(seat.key, seat.epoch)

    async def _clear(self, head: records.Head, until: deadline.Deadline) -> None:
        """Clear an owner that did not answer, once it is out of office.

        Raises:
            OwnerUnreachable: it cannot be found out in time.
        """
        self._directory.forget(head.key, head.epoch)
        found = await self._activator.inquiry.settle(head, suspect_epoch=head.epoch, until=until)
        if found is standing.Standing.LAPSED and head.owner is not None:
            await self._store.sessions.vacate(
                head.key, epoch=head.epoch, incarnation=head.owner.incarnation
            )

    async def _write(self, head: records.Head, verb: protocol.Verb) -> None:
        """Change the status of a session that nobody owns."""
        paused = verb is protocol.Verb.PAUSE
        now_ms = self._clock.now_ms()
        event = messages.Event(
            seq=head.next_seq,
            type=messages.SESSION_PAUSED if paused else messages.SESSION_RESUMED,
            data={},
            version=head.version + 1,
            at_ms=now_ms,
        )
        commit = records.Commit(
            key=head.key,
            epoch=head.epoch,
            nonce="",
            expected_version=head.version,
            commit_id=ids.random_id("commit"),
            events=[event],
            status=records.Status.PAUSED if paused else records.Status.IDLE,
            at_ms=now_ms,
        )
        await self._store.sessions.commit(commit)

    async def _say_goodbye(self, seat: protocol.Seat) -> None:
        request = protocol.Control(
            epoch=seat.epoch,
            verb=protocol.Verb.EVICT,
            request_id=ids.random_id("delete"),
            deadline_s=GOODBYE_S,
        )
        with contextlib.suppress(errors.TorporError):
            await self._calls.control(seat, request, timeout_s=GOODBYE_S)


def _holds(head: records.Head, verb: protocol.Verb) -> bool:
    if verb is protocol.Verb.EVICT:
        return head.owner is None
    return (head.status is records.Status.PAUSED) == (verb is protocol.Verb.PAUSE)
