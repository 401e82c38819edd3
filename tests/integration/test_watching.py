"""Following a session's events, from any gateway, wherever it is; and paging through them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from shared_cluster import Cluster, Gate, events

from torpor import client, errors, limits, messages
from torpor.testing.eventually import assert_eventually


class Watcher:
    """Collects what a watch yields."""

    def __init__(self) -> None:
        self.events: list[messages.Event] = []
        self.deltas: list[str] = []

    async def run(self, session: client.Session, after_seq: int, types: tuple[str, ...]) -> None:
        """Collect until cancelled."""
        async with contextlib.aclosing(session.watch(after_seq, types=types)) as items:
            async for item in items:
                if isinstance(item, client.Delta):
                    self.deltas.append(item.text)
                else:
                    self.events.append(item)

    async def saw(self, seq: int) -> None:
        """Wait until the event of this seq was seen, or one after it."""

        async def seen() -> bool:
            return bool(self.events) and self.events[-1].seq >= seq

        await assert_eventually(seen)


@contextlib.asynccontextmanager
async def _watching(
    session: client.Session, after_seq: int = 0, *types: str
) -> AsyncIterator[Watcher]:
    watcher = Watcher()
    task = asyncio.create_task(watcher.run(session, after_seq, types))
    try:
        yield watcher
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_watch_across_evictions_and_moves(cluster: Cluster, session: client.Session) -> None:
    """From another gateway, over an eviction, a move and a sealed history: no gap, no repeat."""
    elsewhere = cluster.clients[-1].sessions.handle(session.id)
    many = f"for i in range({limits.HOT_EVENTS_MAX}): await ctx.emit('test.event', {{'i': i}})"
    async with _watching(elsewhere) as watcher:
        await session.send("self.n = 1")
        await session.evict()
        await cluster.take_to(session, "node-2")
        await session.send(many)
        await session.evict()
        await cluster.take_to(session, "node-3")
        last = await session.send("return 'end'")
        await watcher.saw(last.seq)
    assert [event.seq for event in watcher.events] == list(range(1, last.seq + 1))
    assert watcher.events == await events(session)


async def test_watch_from_the_middle(session: client.Session) -> None:
    """A watch begins after the seq it is given, and shows only the types it asks for."""
    first = await session.send("return 'one'")
    async with _watching(session, first.seq, messages.AGENT_MESSAGE) as watcher:
        second = await session.send("await ctx.emit('test.event', {}); return 'two'")
        await watcher.saw(second.seq)
    assert [(event.seq, event.data["text"]) for event in watcher.events] == [(second.seq, "two")]


async def test_deltas_come_before_the_reply(session: client.Session, gate: Gate) -> None:
    """What a turn streams is seen while it runs, in order, and is not in the history."""
    await session.send("pass")
    before = (await session.get()).last_seq
    async with _watching(session) as watcher:
        await watcher.saw(before)
        turn = asyncio.create_task(
            session.send(f"ctx.stream('Hel'); ctx.stream('lo'); {gate.code}; return 'Hello'")
        )

        async def streamed() -> bool:
            return "".join(watcher.deltas) == "Hello"

        await assert_eventually(streamed)
        assert watcher.events[-1].seq == before
        gate.open()
        reply = await turn
        await watcher.saw(reply.seq)
    assert reply.text == "Hello"
    assert [event.type for event in watcher.events[-2:]] == [
        messages.USER_MESSAGE,
        messages.AGENT_MESSAGE,
    ]


async def test_watch_ends_with_the_session(session: client.Session) -> None:
    """Deleting a session ends its watches with the reason."""
    await session.send("pass")
    watch = session.watch()
    assert (await anext(watch)).type == messages.SESSION_CREATED
    await session.delete()
    with pytest.raises(errors.SessionDeleted):
        async for _ in watch:
            pass


async def test_history_pages_over_sealed_segments(session: client.Session) -> None:
    """Pages of a long history, partly sealed: every event once, in order; types are picked out."""
    turns = 3
    for turn in range(turns):
        await session.send(
            f"for i in range({limits.HOT_EVENTS_MAX}): await ctx.emit('test.event', {{'i': i}})\n"
            f"await ctx.emit('test.turn', {{'turn': {turn}}})"
        )
    await session.evict()
    happened, after = [], 0
    while True:
        page = await session.history(after, limit=100)
        assert len(page.events) <= 100
        happened += page.events
        after = page.next_after_seq
        if not after:
            break
    assert [event.seq for event in happened] == list(range(1, len(happened) + 1))
    assert len(happened) > turns * limits.HOT_EVENTS_MAX
    numbers = [event.data["turn"] for event in await events(session, "test.turn")]
    assert numbers == list(range(turns))
    in_agent = await session.send(
        "page = await ctx.history.page(types=('test.turn',), limit=2)\n"
        "tail = await ctx.history.tail(1, types=('test.turn',))\n"
        "return str([e.data['turn'] for e in [*page.events, *tail]])"
    )
    assert in_agent.text == "[0, 1, 2]"


async def test_emitted_events_belong_to_the_turn(session: client.Session) -> None:
    """An agent's events are committed with its turn, and not at all if the turn fails."""
    reply = await session.send("await ctx.emit('test.event', {'n': 1}); return 'done'")
    with pytest.raises(errors.TurnFailed):
        await session.send("await ctx.emit('test.event', {'n': 2}); raise ValueError('no')")
    (emitted,) = await events(session, "test.event")
    assert (dict(emitted.data), emitted.version) == ({"n": 1}, reply.version)
    with pytest.raises(errors.InvalidField, match="begin"):
        await session.send("await ctx.emit('agent.message', {})")
