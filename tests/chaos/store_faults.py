"""Faults of the sessions' store, and of the way to it."""

import asyncio
import random
from collections.abc import AsyncIterator

import stores
from fault import Cost, fault
from torpor.testing import eventually, proxy
from world import World

#: Covers a commit or two, so that some are refused soon.
FILLED_UP_BYTES = 8 << 10
#: Small requests and answers are shorter, so that some are cut in two and some pass.
CUT_BYTES = 600
#: Somebody commits within this, under load.
REACHED_TIMEOUT_S = 15.0


@fault("redis killed and restarted", cost=Cost.EXPENSIVE)
async def killed(world: World, rng: random.Random) -> AsyncIterator[None]:
    """The store dies, is away for up to two leases, and comes back on its file."""
    await world.stores.kill_primary()
    try:
        await asyncio.sleep(rng.uniform(0.0, 2.0) * world.lease_ttl_ms / 1000)
        yield
    finally:
        await world.stores.start_primary()


@fault("redis frozen past the lease", cost=Cost.EXPENSIVE)
async def frozen(world: World, rng: random.Random) -> AsyncIterator[None]:
    """The store stands still until all leases are over, and then finds what was sent meanwhile."""
    async with world.stores.frozen():
        await asyncio.sleep(rng.uniform(1.2, 2.0) * world.lease_ttl_ms / 1000)
        yield


@fault("redis stalled", cost=Cost.EXPENSIVE)
async def stalled(world: World, rng: random.Random) -> AsyncIterator[None]:
    """The network holds what is sent, and delivers it when nobody waits for it any more."""
    await world.stores.proxy.set_mode(proxy.Mode.STALL)
    try:
        await asyncio.sleep(rng.uniform(0.3, 2.5) * world.lease_ttl_ms / 1000)
        yield
    finally:
        await world.stores.proxy.set_mode(proxy.Mode.FORWARD)


@fault("redis full", cost=Cost.EXPENSIVE)
async def full(world: World, rng: random.Random) -> AsyncIterator[None]:
    """The store refuses what needs memory, also in the middle of what belongs together."""
    before = await world.stores.refused_for_memory()

    async def someone_is_refused() -> bool:
        return await world.stores.refused_for_memory() > before

    async with world.stores.full(rng.randrange(FILLED_UP_BYTES)):
        await eventually.assert_eventually(someone_is_refused, REACHED_TIMEOUT_S)
        yield


@fault("redis read-only", cost=Cost.EXPENSIVE)
async def read_only(world: World, rng: random.Random) -> AsyncIterator[None]:
    """The store was made a replica, and those who write are told so."""
    async with world.stores.read_only():
        await asyncio.sleep(rng.uniform(0.0, 1.5) * world.lease_ttl_ms / 1000)
        yield


@fault("failover to a replica that has everything", cost=Cost.EXPENSIVE, fails_over=True)
async def failed_over(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Another server takes over; the one before comes back as its replica."""
    await world.stores.fail_over()
    try:
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        yield
    finally:
        await world.stores.rebuild_replica()


@fault(
    "failover to a replica that lacks the last writes",
    cost=Cost.EXPENSIVE,
    loses=True,
    fails_over=True,
)
async def failed_over_with_loss(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Another server takes over that lacks what was written in the last seconds.

    With durability `replicated` nothing is acknowledged in those seconds, and nothing may be lost.
    """
    await world.stores.detach_replica()
    await asyncio.sleep(rng.uniform(0.3, 3.0))
    await world.stores.promote_replica()
    try:
        yield
    finally:
        await world.stores.rebuild_replica()


@fault("commit applied, answer lost", cost=Cost.CHEAP)
async def answer_lost(world: World, rng: random.Random) -> AsyncIterator[None]:
    """The next commits take place, and those who sent them cannot know."""
    wanted = rng.randint(1, 5)
    world.stores.proxy.lose_answers(wanted, stores.commit_marks())

    async def one_is_lost() -> bool:
        return world.stores.proxy.to_lose < wanted

    try:
        await eventually.assert_eventually(one_is_lost, REACHED_TIMEOUT_S)
        yield
    finally:
        world.stores.proxy.lose_answers(0, ())


@fault("connections to redis cut in the middle", cost=Cost.CHEAP)
async def cut(world: World, rng: random.Random) -> AsyncIterator[None]:
    """All connections end, in the middle of a request or of an answer, a few times over."""
    for _ in range(rng.randint(1, 4)):
        world.stores.proxy.cut(rng.randrange(1, CUT_BYTES))
        await asyncio.sleep(rng.uniform(0.0, 0.5))
    yield
