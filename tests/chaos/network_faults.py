"""Faults of whole nodes and of what connects them."""

import asyncio
import random
from collections.abc import AsyncIterator

import machine
import torpor
import victims
from fault import Cost, fault
from world import World

#: A drained node is empty within this: turns under load are short.
DRAIN_TIMEOUT_S = 30.0
#: Five missed health checks, of three seconds each and one between; see `machine`.
WRITTEN_OFF_S = 22.0


@fault("node lost", cost=Cost.EXPENSIVE)
async def node_lost(world: World, rng: random.Random) -> AsyncIterator[None]:
    """All processes of a node stand still, and are gone soon after; it comes back later."""
    name = victims.node(world, rng)
    await world.dismantle_node(name)
    try:
        yield
    finally:
        await world.start_node(name)


@fault("head lost", cost=Cost.EXPENSIVE)
async def head_lost(world: World, rng: random.Random) -> AsyncIterator[None]:
    """The machine with Ray's control service and `torpor serve` dies; it comes back later."""
    await world.kill_head()
    try:
        yield
    finally:
        await world.start_head()
        await world.settled()


@fault("everything killed at once", cost=Cost.EXPENSIVE)
async def everything_killed(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Head, nodes and the sessions' store die in one moment, and are started again.

    No power failure: the page cache lives on, so what was written and not synced is still there.
    """
    everything = [world.kill_node(name) for name in world.nodes]
    await asyncio.gather(*everything, world.kill_head(), world.stores.kill_primary())
    try:
        yield
    finally:
        await world.stores.start_primary()
        await world.start_head()
        await world.settled()


@fault("fullest node lost, all sessions called at once", cost=Cost.EXPENSIVE)
async def everybody_called(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Many sessions lose their owner in one moment and are wanted in the next."""
    name = await victims.fullest_node(world)
    await world.kill_node(name)
    try:
        if world.call_everybody is not None:
            await world.call_everybody()
        yield
    finally:
        await world.start_node(name)


@fault("node frozen past its lease, thawed in its turns", cost=Cost.EXPENSIVE)
async def node_frozen(world: World, rng: random.Random) -> AsyncIterator[None]:
    """A node stands still, its sessions are called elsewhere, and it goes on where it was."""
    victim = await victims.session(world, rng)
    async with victims.turn_held(world, victim):
        try:
            await world.nodes[victim.node].freeze()
            await asyncio.sleep(rng.uniform(1.5, 3.0) * world.lease_ttl_ms / 1000)
            yield
        finally:
            await world.nodes[victim.node].thaw()
    await world.settled()


def _cut_off(other: str, what: str) -> None:
    @fault(f"node and {what} parted", cost=Cost.EXPENSIVE)
    async def parted(world: World, rng: random.Random) -> AsyncIterator[None]:
        """Nothing passes between them."""
        try:
            with world.partition(victims.node(world, rng), other):
                await asyncio.sleep(rng.uniform(0.5, 3.0) * world.lease_ttl_ms / 1000)
                yield
        finally:
            await world.settled()

    @fault(f"node and {what} parted one way", cost=Cost.EXPENSIVE)
    async def parted_one_way(world: World, rng: random.Random) -> AsyncIterator[None]:
        """What one of them sends is lost, and what the other sends arrives."""
        ways = [victims.node(world, rng), other]
        rng.shuffle(ways)
        try:
            with world.partition(ways[0], ways[1], one_way=True):
                await asyncio.sleep(rng.uniform(0.5, 3.0) * world.lease_ttl_ms / 1000)
                yield
        finally:
            await world.settled()


_cut_off("store", "store")
_cut_off("head", "Ray's head")


@fault("node parted from Ray's head until written off", cost=Cost.EXPENSIVE)
async def written_off(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Ray counts a node as dead whose agent, sessions and gateway live and reach the store."""
    name = await victims.fullest_node(world)
    (raylet,) = world.nodes[name].find(machine.Role.RAYLET)
    try:
        with world.partition(name, "head"):
            await asyncio.sleep(WRITTEN_OFF_S)
            yield
        # It learns what became of it once it can, and ends.
        await machine.dies(raylet)
    finally:
        await world.settled()


@fault("two nodes parted", cost=Cost.EXPENSIVE)
async def nodes_parted(world: World, rng: random.Random) -> AsyncIterator[None]:
    """A gateway does not reach owners that are alive, in office, and reach the store."""
    here, there = rng.sample(list(world.nodes), 2)
    try:
        with world.partition(here, there, one_way=rng.random() < 0.5):
            await asyncio.sleep(rng.uniform(0.5, 3.0) * world.lease_ttl_ms / 1000)
            yield
    finally:
        await world.settled()


@fault("rolling restart under load", cost=Cost.EXPENSIVE)
async def rolling_restart(world: World, rng: random.Random) -> AsyncIterator[None]:
    """An operator drains, ends and starts each node, one after another."""
    try:
        for name, node in world.nodes.items():
            elsewhere = [each for each in world.gateways if each != node.gateway]
            async with torpor.connect(rng.choice(elsewhere), api_key=world.operator_key) as client:
                await client.admin.drain(name, timeout_s=DRAIN_TIMEOUT_S)
            await world.kill_node(name)
            await world.start_node(name)
        yield
    finally:
        await world.settled()
