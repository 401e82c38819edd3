"""What an agent sees of its session during a turn."""

import pathlib
from collections.abc import Collection
from typing import Any, Protocol

from torpor import messages


class HistoryPage(Protocol):
    """One gap-free run of events."""

    @property
    def events(self) -> list[messages.Event]:
        """In order of `seq`."""
        ...

    @property
    def next_after(self) -> int | None:
        """Pass as `after` to read on; `None` at the end."""
        ...


class History(Protocol):
    """The session's events, hot and cold alike."""

    async def page(
        self, *, after: int = 0, limit: int = 100, types: Collection[str] = ()
    ) -> HistoryPage:
        """Return up to `limit` committed events with `seq > after`, of `types` if given."""
        ...

    async def tail(self, limit: int = 100, *, types: Collection[str] = ()) -> list[messages.Event]:
        """Return the newest `limit` committed events, oldest first, of `types` if given."""
        ...


class Context(Protocol):
    """Handed to `Agent.on_message`; valid for that one turn."""

    #: The session's id.
    session: str
    #: The tenant that owns the session.
    tenant: str
    #: The version that this turn's commit will have.
    turn: int
    #: The session's folder, also the process's working directory. Do not store absolute paths
    #: below it in the agent's state: another activation has another one.
    workspace: pathlib.Path
    #: What was committed before this turn.
    history: History

    async def emit(self, type: str, data: dict[str, Any]) -> None:  # noqa: A002
        """Add an event of the agent's own, committed with the turn.

        Raises:
            InvalidField: the type is not dotted lower case, uses a prefix that is reserved for
                torpor, or the data is not JSON-like.
        """
        ...

    def stream(self, text: str) -> None:
        """Send a provisional piece of the reply to whoever watches; it is not stored."""
        ...
