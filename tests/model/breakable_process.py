"""A session's process that a test can kill in the middle, in this process.

`probes.reach` is where it dies: from then on nothing that the process still tries reaches the
store, which is all that a killed process can still do to a session.
"""

import asyncio
import contextlib
import contextvars
import pathlib
from collections.abc import Sequence
from typing import Any

from torpor import deployment, errors, probes
from torpor.actors import mailbox, protocol
from torpor.storage import records, redis_store, redis_wire
from torpor.testing import activations, clock, proxy, witness

#: The process that runs now; tasks and threads that it starts inherit it.
_running: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("running", default=None)


class Killed(BaseException):
    """The process is no more."""


class Fate:
    """Takes the place of this process's probes: what happens at which point."""

    def __init__(self, link: proxy.Proxy) -> None:
        self._link = link
        #: The next process that passes it dies.
        self.kill_at: probes.Point | None = None
        #: From here on answers of the store are lost,
        self.lose_at: probes.Point | None = None
        #: until so many claims more were sent.
        self.claims_lost = 0
        #: The next commit is lost before it is sent.
        self.swallow_commit = False

    def pass_by(self, point: probes.Point, facts: dict[str, object]) -> None:
        """Let happen what was armed."""
        process = _running.get()
        if process is None:
            return
        process.demand_life()
        if point is self.kill_at:
            self.kill_at, process.alive = None, False
            raise Killed
        if point is self.lose_at:
            self.lose_at = None
            _at_once(self._link.set_mode(proxy.Mode.DROP_REPLIES))
        elif point is probes.Point.COMMIT_BEFORE and self.swallow_commit:
            self.swallow_commit, process.swallows = False, True
        elif point is probes.Point.ACQUIRE_BEFORE:
            self.claims_lost -= 1
            if self.claims_lost < 0:
                _at_once(self._link.set_mode(proxy.Mode.FORWARD))

    async def clear(self) -> None:
        """Let nothing happen any more."""
        self.kill_at = self.lose_at = None
        self.swallow_commit = False
        self.claims_lost = 0
        await self._link.set_mode(proxy.Mode.FORWARD)


class Process:
    """Claims a session, brings it back, and works until it leaves or dies."""

    def __init__(self, url: str, folder: pathlib.Path) -> None:
        self._folder = folder
        self.alive = True
        #: What it sends next is lost on the way.
        self.swallows = False
        self.store = redis_store.RedisStore(
            _MortalWire(url, self), deployment.Durability.FSYNC, clock.FakeClock()
        )
        self.activation: activations.Activation | None = None

    @property
    def epoch(self) -> int:
        """What it was granted first."""
        assert self.activation is not None
        return self.activation.residence.epoch

    def demand_life(self) -> None:
        """Raise if it was killed."""
        if not self.alive:
            raise Killed

    async def wake(self, key: records.SessionKey) -> None:
        """Take the session over.

        Raises:
            Killed
            what `activations.activate` raises
        """
        before = _running.set(self)
        try:
            self.activation = await activations.activate(
                self.store, key, witness.Witness, self._folder
            )
        finally:
            _running.reset(before)

    async def ask(self, work: mailbox.Work) -> Any:
        """Return the answer to a piece of work.

        Raises:
            Killed: the process died before it answered.
            what it is refused with
        """
        assert self.activation is not None
        answer = self.activation.put(work)
        await asyncio.wait((answer, self.activation._running), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise Killed
        return protocol.accept(answer.result())

    @property
    def serving(self) -> bool:
        """Whether it takes work."""
        return self.activation is not None and not self.activation._running.done()

    async def kill(self) -> None:
        """Kill it and remove what is left of it here."""
        self.alive = False
        if self.activation is not None:
            with contextlib.suppress(Killed):
                await self.activation.close()
        await self.store.close()


class _MortalWire(redis_wire.Wire):
    def __init__(self, url: str, process: Process) -> None:
        super().__init__(url)
        self._process = process

    async def _exchange(
        self, commands: Sequence[redis_wire.Command], lost: type[errors.Unavailable]
    ) -> list[Any]:
        self._process.demand_life()
        if self._process.swallows:
            self._process.swallows = False
            raise lost("the connection was cut while this was sent")
        replies = await super()._exchange(commands, lost)
        self._process.demand_life()
        return replies


def _at_once(coroutine: Any) -> None:
    """Run a coroutine that does not wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")
