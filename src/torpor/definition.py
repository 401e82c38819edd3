"""The base of all agents, and the decorator that makes one of a plain function."""

import functools
import re
from collections.abc import Awaitable, Callable
from typing import ClassVar

import msgspec

from torpor import context, errors, loss, messages

Handler = Callable[[context.Context, messages.Message], Awaitable[str | messages.Reply]]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration_s(text: str) -> float:
    """Return the seconds of `250ms`, `30s`, `5m`, `2h` or `1d`.

    Raises:
        InvalidField: `text` has another form.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise errors.InvalidField(
            f"{text!r} is not a duration; write a number and ms, s, m, h or d", field="duration"
        )
    return float(match[1]) * _SECONDS[match[2]]


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one agent version, read from the class once, at registration."""

    #: Evicted after this long without work.
    idle_timeout_s: float = 300.0
    #: A turn that runs longer is given up; the session is as it was before it.
    turn_timeout_s: float = 600.0
    #: All files of the workspace together.
    workspace_quota_bytes: int = 1 << 30


class Agent:
    """An agent: its attributes are the session's state, its methods handle messages.

    Instances are pickled at every turn's end and come back in another process, so attributes must
    be picklable; a client or a lock is made in `on_wake`, and `__getstate__` keeps it out of the
    state.
    """

    #: Evicted after this long without work.
    idle_timeout: ClassVar[str] = "5m"
    #: A turn that runs longer is given up; the session is as it was before it.
    turn_timeout: ClassVar[str] = "10m"
    #: All files of the workspace together.
    workspace_quota_bytes: ClassVar[int] = 1 << 30

    async def on_message(
        self, ctx: context.Context, message: messages.Message
    ) -> str | messages.Reply:
        """Handle one message; what is returned is the reply."""
        raise NotImplementedError(f"{type(self).__name__} does not define on_message")

    async def on_wake(self) -> None:
        """Run in the new process after state and files are back, before the first message."""

    async def on_recover(self, lost: loss.Lost) -> None:
        """Run after `on_wake` if something that was stored is damaged and was left behind.

        What it changes is kept: it is committed with the event that tells of the recovery. If it
        raises, the session is not woken, and is as it was.
        """

    async def on_evict(self) -> None:
        """Run before the process ends on purpose. What it changes is not kept."""


def settings_of(cls: type[Agent]) -> AgentSettings:
    """Return the settings that the class states.

    Raises:
        InvalidField: a duration cannot be read.
    """
    return AgentSettings(
        idle_timeout_s=parse_duration_s(cls.idle_timeout),
        turn_timeout_s=parse_duration_s(cls.turn_timeout),
        workspace_quota_bytes=cls.workspace_quota_bytes,
    )


def agent(function: Handler) -> type[Agent]:
    """Make a stateless agent of an async function `(ctx, message) -> reply`."""

    class FunctionAgent(Agent):
        async def on_message(
            self, ctx: context.Context, message: messages.Message
        ) -> str | messages.Reply:
            return await function(ctx, message)

    functools.update_wrapper(FunctionAgent, function, updated=())
    return FunctionAgent
