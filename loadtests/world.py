"""The deployment that the benchmark runs on."""

import contextlib
import os
import pathlib
import sys
from collections.abc import AsyncIterator

import torpor
from torpor.client import Client
from torpor.client.sessions import Session
from torpor.dev import local

NODES = 3
#: Plain words, as people write them: what compresses like text, not like noise.
MESSAGE = (
    "Please compare the rainfall of the last three winters with the long-term average, and tell me "
    "which of the stations had to be left out because of missing readings in the early years. "
    "Thanks, and have a good weekend."
)[:200]


class World:
    """A local deployment, a client of it, and fresh sessions."""

    def __init__(self, here: local.LocalDeployment, client: Client) -> None:
        self.local = here
        self.client = client
        self._sessions: list[Session] = []

    async def session(self, agent: str) -> Session:
        """Return a new session."""
        self._sessions.append(await self.client.sessions.create(agent))
        return self._sessions[-1]

    async def clear(self) -> None:
        """Put all sessions to sleep: one that leaves later would be in the next figures."""
        for session in self._sessions:
            await session.evict()
        self._sessions.clear()


@contextlib.asynccontextmanager
async def world(folder: pathlib.Path) -> AsyncIterator[World]:
    """Yield a deployment with the benchmark's agents registered."""
    os.environ["PYTHONPATH"] = str(pathlib.Path(__file__).parent)
    options = local.LocalOptions(folder=folder, nodes=NODES, port=0)

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    async with (
        local.LocalDeployment(options, say=say) as here,
        torpor.connect(here.gateways[0], api_key=here.api_key) as client,
    ):
        for agent in ("Ledger", "Librarian", "Burner"):
            await client.agents.register(f"bench_agents:{agent}")
        yield World(here, client)
