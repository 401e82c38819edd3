"""Faults of wall clocks: the store's, by which leases end, and a node's."""

import asyncio
import random
from collections.abc import AsyncIterator

import wall_clock
from fault import Cost, fault
from world import World

HOUR_S = 3_600


@fault("clock of redis an hour ahead", cost=Cost.EXPENSIVE)
async def clock_ahead(world: World, _rng: random.Random) -> AsyncIterator[None]:
    """All leases end at once, though all nodes are well; the way back ends none."""
    async with world.stores.jumped(HOUR_S):
        yield


@fault("clock of redis an hour back, a node agent killed", cost=Cost.EXPENSIVE)
async def clock_back(world: World, rng: random.Random) -> AsyncIterator[None]:
    """The lease of a dead node agent stands until the clock goes right; then all leases end."""
    async with world.stores.jumped(-HOUR_S):
        await world.kill_agent(rng.choice(sorted(world.nodes)))
        yield


@fault("clock of a node an hour wrong", cost=Cost.CHEAP)
async def node_clock_wrong(world: World, rng: random.Random) -> AsyncIterator[None]:
    """A node's gateway, agent and sessions believe in another hour, and then in the right one."""
    clock = world.clocks[rng.choice(sorted(world.clocks))]
    clock.jump_to(rng.choice((-HOUR_S, HOUR_S)))
    try:
        await asyncio.sleep(wall_clock.SEEN_AFTER_S)
        yield
    finally:
        clock.jump_to(0)
