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
        self._taken: Job | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def busy(self) -> bool:
        """Whether a job has been taken and not yet been finished."""
        return self._taken is not None

    def put(
        self,
        work: Work,
        *,
        deadline_s: float | None = None,
        busy: protocol.BusyPolicy = protocol.BusyPolicy.ENQUEUE,
    ) -> Job:
        """Append work; one look into the inbox that waits serves all who ask for one.

        Raises:
            SessionBusy: the policy is `reject`, and something else is under way or waits. The same
                request again is no reason: its caller came back for the answer.
            MailboxFull: `MAILBOX_MAX` jobs wait.
            TorporError: what the mailbox was closed with.
        """
        if self._closed is not None:
            raise self._closed
        if isinstance(work, protocol.DrainInbox):
            for waiting in self._jobs:
                if isinstance(waiting.work, protocol.DrainInbox):
                    return waiting
        if busy is protocol.BusyPolicy.REJECT and self._occupied_by_others(work):
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
        self._taken = None
        while not self._jobs:
            self._arrived.clear()
            await self._arrived.wait()
        self._taken = self._jobs.popleft()
        return self._taken

    def close(self, error: errors.TorporError) -> None:
        """Refuse what waits and whatever comes, with `error`."""
        self._closed = error
        while self._jobs:
            self._jobs.popleft().resolve(protocol.refuse(error))

    def _occupied_by_others(self, work: Work) -> bool:
        here = [job.work for job in (self._taken, *self._jobs) if job is not None]
        same = isinstance(work, protocol.Deliver) and any(
            isinstance(other, protocol.Deliver)
            and other.message.request_id == work.message.request_id
            for other in here
        )
        return bool(here) and not same
