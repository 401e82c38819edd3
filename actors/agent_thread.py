"""The thread that agent code runs on.

The session actor's event loop answers calls, renews, commits; agent code may block. So it gets a
loop on a thread of its own, on which everything that touches the agent object happens, one thing at
a time: waking it, running a turn, pickling it, taking the snapshot of its files.
"""

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from torpor import definition, errors, limits, loss, messages
from torpor.actors import output, turn_context
from torpor.storage import snapshot, state

T = TypeVar("T")

#: After a turn's time is up its coroutine is cancelled; code that blocks gets this long to notice.
CANCEL_GRACE_S = 5.0
#: Tasks of the agent that may answer their end with an exit, one after the other.
EXITS_MAX = 8
#: Lines of a traceback that go into the history.
TRACEBACK_LINES_MAX = 20
#: Characters of an error's message, and of its traceback: either may quote what the agent works on.
FAILURE_CHARS_MAX = 16 << 10


class TurnResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn that ended well leaves to be committed."""

    reply: messages.Reply
    #: The agent, pickled.
    state: bytes
    snapshot: snapshot.Snapshot


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent that was told of a loss leaves to be committed."""

    #: The agent, pickled; None if it has no `on_recover`.
    state: bytes | None
    snapshot: snapshot.Snapshot


class TurnFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a turn is to be committed as failed: the agent's doing, so repeating it is no use."""

    reason: str
    message: str
    #: The traceback's last lines.
    traceback: str


class AgentThread:
    """One agent object on one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._thread.start()
        self._agent: definition.Agent | None = None

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the agent's thread and return what it returns."""
        contained = _contained(work)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(contained, self._loop))

    async def wake(self, make: Callable[[], definition.Agent]) -> None:
        """Make the agent object and run its `on_wake`."""

        async def work() -> None:
            self._agent = make()
            await self._agent.on_wake()

        await self.call(work())

    async def recover(self, lost: loss.Lost, snapshotter: snapshot.Snapshotter) -> Recovered:
        """Run `on_recover`, if the agent has one, then pickle it and take a snapshot of its files.

        Raises:
            StateNotPicklable, WorkspaceQuotaExceeded, WorkspaceUnreadable
            StorageFull, StorageUnavailable
        """
        current = self._agent
        assert current is not None, "no recovery before wake"  # noqa: S101 — for the type checker

        async def work() -> Recovered:
            state_now = None
            if type(current).on_recover is not definition.Agent.on_recover:
                await current.on_recover(lost)
                state_now = state.dump(current)
            return Recovered(state=state_now, snapshot=snapshotter.snapshot())

        return await self.call(work())

    async def evict(self) -> None:
        """Run `on_evict` for `CANCEL_GRACE_S` at most; nothing depends on how it ends."""
        if self._agent is None:
            return
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.call(self._agent.on_evict()), CANCEL_GRACE_S)

    def close(self) -> None:
        """End the thread, and what the agent has started on it; waits for neither."""
        if self._over:
            return
        self._over = True
        # Agent code that ended the loop by itself may have been faster.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)

    async def run_turn(
        self,
        ctx: turn_context.TurnContext,
        message: messages.Message,
        snapshotter: snapshot.Snapshotter,
        *,
        timeout_s: float,
    ) -> TurnResult | TurnFailure:
        """Run one message through the agent, then pickle it and take the snapshot of its files.

        If the turn's time is up and its code does not stop when asked to, the thread is lost, and
        with it this process.

        Raises:
            StorageFull, StorageUnavailable: the files could not be stored; nothing is wrong with
                the turn.
        """
        work = self.call(self._turn(ctx, message, snapshotter, timeout_s))
        try:
            return await asyncio.wait_for(work, timeout_s + CANCEL_GRACE_S)
        except TimeoutError:
            return _failure(_timed_out(timeout_s))

    def _run(self) -> None:
        # asyncio ends a loop with either of these; one in a task that the agent started must not
        # leave all later work waiting.
        while not self._over:
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                self._loop.run_forever()
        try:
            self._end_tasks()
        finally:
            self._loop.close()

    def _end_tasks(self) -> None:
        """End what the agent has started and not ended."""
        for _ in range(EXITS_MAX):
            if not (tasks := asyncio.all_tasks(self._loop)):
                return
            for task in tasks:
                task.cancel()
            ended = asyncio.gather(*tasks, return_exceptions=True)
            # Of the runtime: the stop that `close` has asked for comes only now.
            with contextlib.suppress(SystemExit, KeyboardInterrupt, RuntimeError):
                self._loop.run_until_complete(ended)

    async def _turn(
        self,
        ctx: turn_context.TurnContext,
        message: messages.Message,
        snapshotter: snapshot.Snapshotter,
        timeout_s: float,
    ) -> TurnResult | TurnFailure:
        current = self._agent
        assert current is not None, "no turn before wake"  # noqa: S101 — for the type checker
        try:
            async with asyncio.timeout(timeout_s) as limit:
                reply = await _handle(current, ctx, message)
        except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:
            return _failure(_timed_out(timeout_s) if limit.expired() else error)
        try:
            dumped = state.dump(current)
            return TurnResult(reply=reply, state=dumped, snapshot=snapshotter.snapshot())
        except (errors.TurnFailed, errors.WorkspaceQuotaExceeded, errors.InvalidArgument) as error:
            return _failure(error)


async def _contained(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise errors.TurnFailed(f"agent code raised {error!r}") from error


async def _handle(
    current: definition.Agent, ctx: turn_context.TurnContext, message: messages.Message
) -> messages.Reply:
    answer: Awaitable[object] | object = current.on_message(ctx, message)
    value = await answer if isinstance(answer, Awaitable) else answer
    if isinstance(value, str):
        value = messages.Reply(text=value)
    if isinstance(value, messages.Reply):
        text = output.utf8(value.text)
        if len(text.encode()) > limits.EVENT_BYTES_MAX:
            raise errors.TurnFailed(
                f"the reply is longer than {limits.EVENT_BYTES_MAX} bytes; write a file instead"
            )
        data, _ = messages.plain(value.data, "reply.data")
        return messages.Reply(text=text, data=data)
    if value is None:
        return messages.Reply()
    raise errors.TurnFailed(
        f"on_message returned {type(value).__name__}; return a str, a torpor.Reply or nothing"
    )


def _timed_out(timeout_s: float) -> errors.TurnTimedOut:
    return errors.TurnTimedOut(f"the turn ran longer than the agent's {timeout_s:g} s")


def _failure(error: BaseException) -> TurnFailure:
    lines = "".join(traceback.format_exception(error)).splitlines()[-TRACEBACK_LINES_MAX:]
    reason, message = errors.TurnFailed.reason, f"{type(error).__name__}: {error}"
    if isinstance(error, errors.TorporError):
        reason, message = error.reason, error.message
    return TurnFailure(
        reason=reason,
        message=output.utf8(message[:FAILURE_CHARS_MAX]),
        traceback=output.utf8("\n".join(lines)[-FAILURE_CHARS_MAX:]),
    )
