"""What an agent is handed for one turn."""

import asyncio
import pathlib
from typing import Any

import pytest

from torpor import errors, limits
from torpor.actors import turn_context
from torpor.storage import history, local_blobs, memory_store, records
from torpor.testing import store_samples

KEY = records.SessionKey("acme", "chat")


def _context(tmp_path: pathlib.Path, stream: Any = lambda _: None) -> turn_context.TurnContext:
    return turn_context.TurnContext(
        key=KEY, turn=7, workspace=tmp_path, history=None, stream=stream
    )


async def test_emitted_events_are_collected(tmp_path: pathlib.Path) -> None:
    """Events are kept in order, as copies that later changes do not reach."""
    ctx = _context(tmp_path)
    data = {"list": [1]}
    await ctx.emit("app.first", data)
    data["list"].append(2)
    await ctx.emit("app.second", {})
    assert [(draft.type, draft.data) for draft in ctx.emitted] == [
        ("app.first", {"list": [1]}),
        ("app.second", {}),
    ]


@pytest.mark.parametrize(
    "kind", ["", "plain", "App.event", "app.", "a b.c", "agent.message", "session.x", "user.x"]
)
async def test_types_that_are_refused(tmp_path: pathlib.Path, kind: str) -> None:
    """A type is dotted lower case and not one of torpor's own."""
    ctx = _context(tmp_path)
    with pytest.raises(errors.InvalidField) as refused:
        await ctx.emit(kind, {})
    assert refused.value.ids["field"] == "type"
    assert ctx.emitted == []


@pytest.mark.parametrize(
    "data",
    [{"x": object()}, {"x": {1: object()}}, ["no object"], {"x": "x" * limits.EVENT_BYTES_MAX}],
    ids=["object", "deep object", "list", "too large"],
)
async def test_data_that_is_refused(tmp_path: pathlib.Path, data: Any) -> None:
    """Data is a JSON-like object of bounded size."""
    ctx = _context(tmp_path)
    with pytest.raises(errors.InvalidField):
        await ctx.emit("app.event", data)
    assert ctx.emitted == []


async def test_data_without_an_end(tmp_path: pathlib.Path) -> None:
    """Data that contains itself is refused, not recursed into."""
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(errors.InvalidField):
        await _context(tmp_path).emit("app.event", endless)


async def test_events_of_a_turn_are_bounded(tmp_path: pathlib.Path) -> None:
    """One event more than the bound is refused."""
    ctx = _context(tmp_path)
    for _ in range(limits.TURN_EVENTS_MAX):
        await ctx.emit("app.event", {})
    with pytest.raises(errors.ResourceExhausted):
        await ctx.emit("app.event", {})


def test_stream_and_identity(tmp_path: pathlib.Path) -> None:
    """Deltas go straight to the stream; the context says whose turn it is."""
    streamed: list[str] = []
    ctx = _context(tmp_path, streamed.append)
    ctx.stream("a")
    ctx.stream("b")
    assert streamed == ["a", "b"]
    assert (ctx.session, ctx.tenant, ctx.turn, ctx.workspace) == ("chat", "acme", 7, tmp_path)


async def test_history_is_read_on_the_owners_loop(tmp_path: pathlib.Path) -> None:
    """An agent on a loop of its own reads committed events through the owner's."""
    stored = memory_store.MemoryStore()
    head = await store_samples.owned(stored)
    await stored.sessions.commit(store_samples.commit(head, count=3))
    reader = history.History(stored.sessions, local_blobs.LocalBlobStore(tmp_path), head.key)
    mine = turn_context.OwnerHistory(reader, asyncio.get_running_loop())

    async def read() -> tuple[list[int], list[int]]:
        page = await mine.page(after=1, limit=2)
        tail = await mine.tail(1)
        return [event.seq for event in page.events], [event.seq for event in tail]

    assert await asyncio.to_thread(lambda: asyncio.run(read())) == ([2, 3], [4])
