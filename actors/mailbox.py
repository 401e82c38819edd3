"""What waits for its turn inside the owner: bounded, in order, with the busy policy at the door."""

import asyncio
import time
from collections import deque
from typing import Any

from torpor import errors, limits
from torpor.actors import protocol

Work = (
    protocol.Deliver | protocol.Control | protocol.PlaceFile | protocol.DrainInbox | protocol.Leave
)


class Job:
    """A piece of work and the caller who awaits its answer."""

    def __init__(self, work: Work, *, deadline_s: float | None) -> None:
        self.work = work
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._expires = None if deadline_s is None else time.monotonic() + deadline_s

    @property
    def expired(self) -> bool:
        """Whether its caller has given up, so that it must not be begun any more."""
        return self._expires is not None and time.monotonic() >= self._expires

    def resolve(self, value: object) -> None:
        """Answer the caller, unless it is gone."""
        if not self.answer.done():
            self.answer.set_result(value)


class Mailbox:
    """First in, first out."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._jobs: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._closed: errors.TorporError | None = None
        #: Whether a job has been taken and not yet been finished.
        self.busy = False

    def __len__(self) -> int:
        return len(self._jobs)

    def put(
        self,
        work: Work,
        *,
        deadline_s: float | None = None,
        busy: protocol.BusyPolicy = protocol.BusyPolicy.ENQUEUE,
    ) -> Job:
        """Append work.

        Raises:
            SessionBusy: the policy is `reject` and something is under way or waits.
            MailboxFull: `MAILBOX_MAX` jobs wait.
            TorporError: what the mailbox was closed with.
        """
        if self._closed is not None:
            raise self._closed
        if busy is protocol.BusyPolicy.REJECT and (self.busy or self._jobs):
            raise errors.SessionBusy(session=self._session)
        if len(self._jobs) >= limits.MAILBOX_MAX:
            raise errors.MailboxFull(
                f"{limits.MAILBOX_MAX} messages wait for this session; try again later",
                session=self._session,
            )
        job = Job(work, deadline_s=deadline_s)
        self._jobs.append(job)
        self._arrived.set()
        return job

    async def take(self) -> Job:
        """Await and remove the oldest job; the session is busy until the next `take`."""
        self.busy = False
        while not self._jobs:
            self._arrived.clear()
            await self._arrived.wait()
        self.busy = True
        return self._jobs.popleft()

    def close(self, error: errors.TorporError) -> None:
        """Refuse what waits and whatever comes, with `error`."""
        self._closed = error
        while self._jobs:
            self._jobs.popleft().resolve(protocol.refuse(error))
