"""The deployment that the benchmark runs on."""

import asyncio
import contextlib
import os
import pathlib
import sys
from collections.abc import AsyncIterator, Sequence

import ray

import torpor
from loadtests import waiting
from torpor import errors
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
#: The benchmark's agents: name → where it is.
AGENTS = {
    "ledger": "bench_agents:Ledger",
    "librarian": "bench_agents:Librarian",
    "burner": "bench_agents:Burner",
    "analyst": "bench_analyst:Analyst",
}
#: The 200 of the herd fit on one node, with room for slots in stock.
SESSIONS_PER_NODE_MAX = 220
#: Sessions that are put to sleep at a time.
EVICTED_AT_ONCE = 8
#: Sessions kept awake make their node less attractive: long before so many, each node has one.
INTRODUCED_MAX = 60
#: A node is in service, and what it had is found lost, within this on a slow machine.
NODE_TIMEOUT_S = 90.0


class World:
    """A local deployment, a client of it, and fresh sessions."""

    def __init__(self, here: local.LocalDeployment, client: Client) -> None:
        self.local = here
        self.client = client
        self._registered: set[str] = set()
        self._sessions: list[Session] = []

    async def session(self, agent: str) -> Session:
        """Return a new session."""
        if agent not in self._registered:
            await self.client.agents.register(AGENTS[agent])
            self._registered.add(agent)
        self._sessions.append(await self.client.sessions.create(agent))
        return self._sessions[-1]

    async def introduce(self, agent: str) -> None:
        """Wake sessions until every node has had one: what a node needs once is there then.

        Raises:
            RuntimeError: a node gets none.
        """
        lacking = {node.id for node in await self.client.admin.nodes() if node.alive}
        awake: list[Session] = []
        while lacking and len(awake) < INTRODUCED_MAX:
            awake.append(await self.session(agent))
            await awake[-1].send(MESSAGE)
            lacking.discard((await awake[-1].get()).node)
        await self.evict(awake)
        if lacking:
            raise RuntimeError(f"none of {len(awake)} sessions was placed on {lacking}")

    async def evict(self, sessions: Sequence[Session]) -> None:
        """Put sessions to sleep."""
        await waiting.few_at_a_time([session.evict for session in sessions], EVICTED_AT_ONCE)

    async def clear(self) -> None:
        """Put all sessions to sleep, and drained nodes back: both would be in the next figures."""
        sessions, self._sessions = self._sessions, []
        await self.evict(sessions)
        nodes = await self.client.admin.nodes()
        if drained := [node.name for node in nodes if node.alive and node.draining]:
            await self.put_back(drained)

    async def empty(self, name: str) -> None:
        """Evict what is on a node and place nothing on it until it is `put_back`.

        Raises:
            RuntimeError: it does not get empty.
        """

        async def drained() -> bool:
            return not (await self.client.admin.drain(name)).sessions

        await waiting.until(drained, f"{name} is empty", NODE_TIMEOUT_S)

    async def put_back(self, names: Sequence[str]) -> None:
        """Bring drained nodes into service again, each with a new agent."""
        control = self.local.control
        for running in [each for each in control.running.values() if each.name in names]:
            await asyncio.wait_for(running.agent_actor.retire.remote(), NODE_TIMEOUT_S)
            ray.kill(running.agent_actor)
        await self.in_service(names)

    async def in_service(self, names: Sequence[str]) -> None:
        """Reconcile until nodes of these names take sessions.

        Raises:
            RuntimeError: that does not happen.
        """

        async def taking() -> bool:
            # An actor that was just killed may still have its name.
            with contextlib.suppress(ray.exceptions.RayError, ValueError, errors.TorporError):
                await self.local.control.reconcile()
            nodes = await self.client.admin.nodes()
            return set(names) <= {n.name for n in nodes if n.alive and not n.draining}

        await waiting.until(taking, f"{', '.join(names)} are in service", NODE_TIMEOUT_S)


@contextlib.asynccontextmanager
async def world(folder: pathlib.Path) -> AsyncIterator[World]:
    """Yield a deployment whose nodes can import the benchmark's agents."""
    os.environ["PYTHONPATH"] = str(pathlib.Path(__file__).parent)
    options = local.LocalOptions(
        folder=folder, nodes=NODES, port=0, sessions_per_node_max=SESSIONS_PER_NODE_MAX
    )

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    async with (
        local.LocalDeployment(options, say=say) as here,
        torpor.connect(here.gateways[0], api_key=here.api_key) as client,
    ):
        yield World(here, client)
