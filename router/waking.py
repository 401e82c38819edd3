"""Waking sessions that have something to do while nobody waits for it."""

import asyncio
import logging

from torpor import clock, errors, messages
from torpor.router import deadline, routing
from torpor.storage import records, store

log = logging.getLogger(__name__)

#: Sessions being woken in the background; what does not fit is left to the sweep.
POKES_MAX = 256
#: A wake that takes longer is left to the sweep.
POKE_S = 60.0


class Waker:
    """Durable delivery, and the nudge that follows it."""

    def __init__(self, stored: store.Store, route: routing.Router, time: clock.Clock) -> None:
        self._store = stored
        self._router = route
        self._clock = time
        self._pokes: dict[records.SessionKey, asyncio.Task[None]] = {}
        #: Poked again since their wake began, which may have looked into the inbox before that.
        self._again: set[records.SessionKey] = set()

    async def accept(
        self, key: records.SessionKey, message: messages.Message, *, body_digest: str
    ) -> records.Enqueued:
        """Put a message into the durable inbox and wake the session in the background.

        A paused session keeps it until it is resumed.

        Raises:
            InboxFull, RequestIdReused
            SessionNotFound, SessionDeleted, StoreUnavailable, StoreReadOnly
        """
        item = records.InboxItem(
            message=message, body_digest=body_digest, at_ms=self._clock.now_ms()
        )
        await self._store.wake.ensure(key)
        try:
            enqueued = await self._store.sessions.enqueue(key, item)
        except errors.NotFound:
            await self._store.wake.clear(key)
            raise
        if not _resolved(enqueued.known):
            # A sweep may have taken the first hint away before the message was there.
            await self._store.wake.ensure(key)
            self.poke(key)
        return enqueued

    def poke(self, key: records.SessionKey) -> None:
        """Wake the session in the background, if there is room for one more."""
        if key in self._pokes:
            self._again.add(key)
            return
        if len(self._pokes) >= POKES_MAX:
            return
        task = asyncio.create_task(self._wake_quietly(key))
        self._pokes[key] = task
        task.add_done_callback(lambda done: self._end(key, done))

    async def wake(self, key: records.SessionKey) -> None:
        """Wake the session and have it look into its inbox.

        Raises:
            what `Router.reach` raises
        """
        await self._router.drain_inbox(key, deadline.Deadline.after(self._clock, POKE_S))

    async def close(self) -> None:
        """End what is under way; the hints remain for another gateway."""
        self._again.clear()
        tasks = list(self._pokes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self, key: records.SessionKey, done: asyncio.Task[None]) -> None:
        del self._pokes[key]
        if key in self._again:
            self._again.remove(key)
            if not done.cancelled():
                self.poke(key)

    async def _wake_quietly(self, key: records.SessionKey) -> None:
        try:
            await self.wake(key)
        except errors.SessionPaused:
            pass
        except errors.TorporError as error:
            log.info(
                "left to the sweep: %s",
                error,
                extra={"action": "poke_failed", "session_id": str(key)},
            )


def _resolved(outcome: records.Outcome | None) -> bool:
    return outcome is not None and outcome.state is not records.OutcomeState.PENDING
