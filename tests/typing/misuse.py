"""Mistakes that mypy finds: it refuses an ignore that hides nothing, so each line must be wrong."""

import torpor


class Forgetful(torpor.Agent):
    """Agents that cannot work."""

    idle_timeout = 30  # type: ignore[assignment]

    def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:  # type: ignore[override]
        """Is not async."""
        return message.text


@torpor.agent  # type: ignore[arg-type]
async def wordless(ctx: torpor.Context, message: torpor.Message) -> int:
    """Answer with something that is no reply."""
    return 1


async def use(ctx: torpor.Context) -> None:
    """Calls that a server or an owner would refuse."""
    ctx.history.page()  # type: ignore[unused-coroutine]
    ctx.stream(b"bytes")  # type: ignore[arg-type]
    await ctx.emit("notebook.ran", data=["no", "object"])  # type: ignore[arg-type]
    async with torpor.connect("localhost:7420") as connected:
        session = connected.sessions.handle("s-1")
        await session.send("x", busy="later")  # type: ignore[arg-type]
        await session.send("x", request_id=7)  # type: ignore[arg-type]
        session.evict()  # type: ignore[unused-coroutine]
        await session.files.write("a.txt", "text")  # type: ignore[arg-type]
    with torpor.connect("localhost:7420") as blocking:  # type: ignore[attr-defined]
        blocking.sessions.handle("s-1")
    torpor.Reply(text="x", seq=1)  # type: ignore[call-arg]
    torpor.Message(text="x").text = "y"  # type: ignore[misc]
