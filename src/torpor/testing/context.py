"""A context without a cluster, to test agents as plain objects."""

import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from torpor import context, limits, messages


class FakePage(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a `FakeHistory`."""

    #: In order of `seq`.
    events: list[messages.Event]
    #: Pass as `after` to read on; `None` at the end.
    next_after: int | None


class FakeHistory:
    """The events that a test says were committed before the turn."""

    def __init__(self, events: Sequence[messages.Event] = ()) -> None:
        self._events = list(events)

    async def page(
        self, *, after: int = 0, limit: int = 100, types: Collection[str] = ()
    ) -> context.HistoryPage:
        """Return up to `limit` events with `seq > after`, of `types` if given."""
        found = [event for event in self._of(types) if event.seq > after]
        cut = found[: min(limit, limits.PAGE_EVENTS_MAX)]
        more = len(cut) < len(found)
        return FakePage(events=cut, next_after=cut[-1].seq if more else None)

    async def tail(self, limit: int = 100, *, types: Collection[str] = ()) -> list[messages.Event]:
        """Return the newest `limit` events, oldest first, of `types` if given."""
        return self._of(types)[-limit:]

    def _of(self, types: Collection[str]) -> list[messages.Event]:
        return [event for event in self._events if not types or event.type in types]


class FakeContext:
    """A `torpor.Context` over a folder of the test's; it collects what the agent sends.

        ctx = FakeContext(tmp_path)
        reply = await MyAgent().on_message(ctx, torpor.Message(text="hello"))
        assert ctx.emitted == [("weather.asked", {"place": "Oslo"})]

    The folder is not made the process's working directory: a test of an agent that relies on it
    does that itself, for instance with `monkeypatch.chdir`.
    """

    def __init__(
        self,
        workspace: pathlib.Path,
        *,
        committed: Sequence[messages.Event] = (),
        session: str = "session-test",
        tenant: str = "tenant-test",
        turn: int = 1,
    ) -> None:
        self.session = session
        self.tenant = tenant
        self.turn = turn
        self.workspace = workspace
        self.history: context.History = FakeHistory(committed)
        #: What `emit` was called with, in order.
        self.emitted: list[tuple[str, dict[str, Any]]] = []
        #: What `stream` was called with, in order.
        self.streamed: list[str] = []

    async def emit(self, type: str, data: dict[str, Any]) -> None:  # noqa: A002
        """Collect an event, under the rules of a real session.

        Raises:
            InvalidField: the type is not dotted lower case, uses a prefix that is reserved for
                torpor, or the data is not JSON-like.
        """
        messages.check_own_type(type)
        copy, _ = messages.plain(data, "data")
        self.emitted.append((type, copy))

    def stream(self, text: str) -> None:
        """Collect a provisional piece of the reply."""
        self.streamed.append(text)
