"""Agents of the integration tests: each message brings the code that the session runs.

A module of its own, because the nodes' processes import it by its name.
"""

import asyncio
import os
import pathlib
import textwrap

import torpor

#: How often a held turn looks at its gate.
LOOK_S = 0.02


class Puppet(torpor.Agent):
    """Runs a message as the body of an async function of `self`, `ctx`, `message`, `hold`."""

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> object:
        """Run the code; what it returns is the reply."""
        source = "async def body(self, ctx, message, hold):\n" + textwrap.indent(
            textwrap.dedent(message.text).strip() or "pass", "    "
        )
        scope: dict[str, object] = {}
        exec(source, scope)  # noqa: S102 - running what the test says is all that this agent is for
        return await scope["body"](self, ctx, message, hold)


class Restless(Puppet):
    """Leaves soon after its last message."""

    idle_timeout = "1s"


class Hurried(Puppet):
    """Has little time for a turn."""

    turn_timeout = "1s"


class Frugal(Puppet):
    """Has little room for files."""

    workspace_quota_bytes = 64 << 10


class Forgetful(Puppet):
    """Cannot be pickled once it has seen a `secret`."""

    def __reduce__(self) -> str:
        if hasattr(self, "secret"):
            raise TypeError("a secret is not for the disk")
        return super().__reduce__()


class NoAgent:
    """Not an agent, for the test that registers it."""


async def hold(gate: str) -> None:
    """Write this process's id as one more line to the file `gate`, then wait for `gate`.open."""
    _note(pathlib.Path(gate))
    while not _exists(f"{gate}.open"):  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(LOOK_S)


def _note(gate: pathlib.Path) -> None:
    with gate.open("a") as file:
        file.write(f"{os.getpid()}\n")


def _exists(path: str) -> bool:
    return pathlib.Path(path).exists()
