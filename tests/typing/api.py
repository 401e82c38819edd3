"""The public API as people type it: checked by mypy, never run."""

import pathlib
from collections.abc import Callable
from typing import assert_type

import torpor
from torpor import client


class Notebook(torpor.Agent):
    """An agent with state, settings and all its methods."""

    idle_timeout = "30s"
    turn_timeout = "1m"
    workspace_quota_bytes = 1 << 20

    def __init__(self) -> None:
        self.turns = 0

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Use everything that a turn is given."""
        self.turns += 1
        assert_type(ctx.workspace, pathlib.Path)
        page = await ctx.history.page(after=0, limit=10, types=["user.message"])
        for event in [*page.events, *await ctx.history.tail(5)]:
            assert_type(event, torpor.Event)
        ctx.stream("so far")
        await ctx.emit("notebook.ran", {"turn": ctx.turn, "sender": message.sender})
        return f"{ctx.tenant}/{ctx.session}: {message.text}"

    async def on_wake(self) -> None:
        """Open what the state does not hold."""

    async def on_recover(self, lost: torpor.Lost) -> None:
        """Go on without what is lost."""
        assert_type(lost.versions, tuple[int, ...])
        assert_type(lost.files, tuple[str, ...])
        self.turns = 0 if lost.state else self.turns

    async def on_evict(self) -> None:
        """Close it."""


class Structured(torpor.Agent):
    """An agent whose replies hold more than text."""

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> torpor.Reply:
        """Answer with data."""
        return torpor.Reply(text="rows", data={"rows": [1, 2], "asked": message.data})


@torpor.agent
async def echo(ctx: torpor.Context, message: torpor.Message) -> str:
    """Be an agent without state."""
    return message.text


assert_type(echo, type[torpor.Agent])


async def use() -> None:
    """The async client."""
    async with torpor.connect("localhost:7420", api_key="tp_x", timeout_s=30) as connected:
        session = await connected.sessions.create("notebook", request_id="r-1")
        assert_type(session, client.Session)
        reply = await session.send("x = 41", data={"k": 1}, busy="reject", min_version=3)
        assert_type(reply, client.Reply)
        assert_type(reply.text, str)
        accepted = await session.post("later")
        assert_type(accepted.request_id, str)
        async for item in session.watch(after_seq=reply.seq):
            if isinstance(item, client.Delta):
                assert_type(item.text, str)
            else:
                assert_type(item, torpor.Event)
        async for event in session.events(types=["agent.message"]):
            assert_type(event.seq, int)
        assert_type((await session.history(limit=5)).next_after_seq, int)
        for decide in (session.get, session.evict, session.pause, session.resume):
            assert_type(await decide(), client.SessionInfo)
        assert_type(await session.files.read("plot.png"), bytes)
        written = await session.files.write("data.csv", pathlib.Path("local.csv"), mode=0o600)
        assert_type(written.version, int)
        assert_type([file.path async for file in session.files.list("", recursive=True)], list[str])
        await session.delete()
        async for info in connected.sessions.list():
            assert_type(info.node_name, str)
        assert_type(await connected.agents.register("module:Notebook"), client.AgentInfo)
        assert_type(await connected.admin.nodes(), list[client.NodeInfo])


def use_blocking(show: Callable[[str], None]) -> None:
    """The blocking client, and errors with their ids."""
    with torpor.connect_sync() as connected:
        session = connected.sessions.handle("s-1")
        try:
            assert_type(session.send("x + 1", timeout_s=5), client.Reply)
        except torpor.errors.TurnFailed as error:
            show(f"{error.reason} {error.message} {error.ids['seq']}")
        except torpor.errors.TorporError as error:
            assert_type(error.retryable, bool)
        for item in session.watch():
            show(item.text if isinstance(item, client.Delta) else item.type)
        assert_type([info.id for info in connected.sessions.list()], list[str])
        assert_type(session.files.read_to("a.txt", pathlib.Path("a.txt")), int)
