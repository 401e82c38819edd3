"""The context that an agent is handed for one turn."""

import asyncio
import pathlib
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

import msgspec

from torpor import context, errors, limits, messages
from torpor.storage import history, records

T = TypeVar("T")


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An event before its commit: without seq and version."""

    type: str
    data: dict[str, Any]


class OwnerHistory:
    """The committed history, read on the owner's event loop for an agent that runs on another."""

    def __init__(self, reader: history.History, loop: asyncio.AbstractEventLoop) -> None:
        self._reader = reader
        self._loop = loop

    async def page(
        self, *, after: int = 0, limit: int = 100, types: Collection[str] = ()
    ) -> context.HistoryPage:
        """Return up to `limit` committed events with `seq > after`, of `types` if given."""
        return await self._over_there(self._reader.page(after=after, limit=limit, types=types))

    async def tail(self, limit: int = 100, *, types: Collection[str] = ()) -> list[messages.Event]:
        """Return the newest `limit` committed events, oldest first, of `types` if given."""
        return await self._over_there(self._reader.tail(limit, types=types))

    async def _over_there(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


class TurnContext:
    """One turn's context; collects what is to be committed with it."""

    def __init__(
        self,
        *,
        key: records.SessionKey,
        turn: int,
        workspace: pathlib.Path,
        history: context.History,
        stream: Callable[[str], None],
    ) -> None:
        self.session = key.session
        self.tenant = key.tenant
        self.turn = turn
        self.workspace = workspace
        self.history = history
        self.emitted: list[Draft] = []
        self._stream = stream
        self._room_bytes = limits.TURN_BYTES_MAX

    async def emit(self, type: str, data: dict[str, Any]) -> None:  # noqa: A002
        """Add an event of the agent's own, committed with the turn.

        Raises:
            InvalidField: the type is not dotted lower case, uses a reserved prefix, or the data is
                not JSON-like.
            ResourceExhausted: the turn would have more than `TURN_EVENTS_MAX` events, or their data
                more than `TURN_BYTES_MAX`.
        """
        messages.check_own_type(type)
        copy, size_bytes = messages.plain(data, "data")
        self._room_bytes -= size_bytes
        if len(self.emitted) >= limits.TURN_EVENTS_MAX or self._room_bytes < 0:
            raise errors.ResourceExhausted(
                f"a turn holds at most {limits.TURN_EVENTS_MAX} events, and "
                f"{limits.TURN_BYTES_MAX} bytes of their data",
                session=self.session,
            )
        self.emitted.append(Draft(type=type, data=copy))

    def stream(self, text: str) -> None:
        """Send a provisional piece of the reply to whoever watches; it is not stored."""
        self._stream(text)
