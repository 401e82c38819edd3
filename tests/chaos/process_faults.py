"""Faults of processes: sessions', and those that serve them."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import machine
import victims
from fault import Cost, fault
from torpor import errors, probes
from torpor.storage import records
from torpor.testing import eventually
from world import World

#: A point that is armed is passed by somebody within this, under load.
REACHED_TIMEOUT_S = 15.0
#: A session whose node is silent is held by another one within this, if it is called.
TAKEN_OVER_TIMEOUT_S = 30.0
#: Ray without its control service keeps serving so long, and much longer.
GCS_AWAY_S = 8.0

_WAKING = frozenset(
    {
        probes.Point.BOUND,
        probes.Point.ACQUIRE_BEFORE,
        probes.Point.ACQUIRE_AFTER,
        probes.Point.RESTORE_BEFORE,
        probes.Point.RESTORE_AFTER,
        probes.Point.BLOB_READ,
    }
)
_LEAVING = frozenset(
    {
        probes.Point.SEAL_BEFORE,
        probes.Point.SEAL_AFTER,
        probes.Point.RELEASE_BEFORE,
        probes.Point.RELEASE_AFTER,
    }
)


@fault("session killed", cost=Cost.CHEAP)
async def session_killed(world: World, rng: random.Random) -> AsyncIterator[None]:
    """A session's process dies, whatever it is doing."""
    victim = await victims.session(world, rng)
    world.signal(victim.pid, signal.SIGKILL)
    await machine.dies(victim.pid)
    yield


@fault("session frozen", cost=Cost.CHEAP)
async def session_frozen(world: World, rng: random.Random) -> AsyncIterator[None]:
    """A session's process hangs, until it is killed as silent or goes on."""
    victim = await victims.session(world, rng)
    world.signal(victim.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(rng.uniform(0.5, 4.0))
        yield
    finally:
        world.signal(victim.pid, signal.SIGCONT)


@fault("fork servers killed", cost=Cost.CHEAP)
async def fork_servers_killed(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Fork servers die, perhaps while they fork; what they have forked lives on."""

    async def servers() -> list[int]:
        return [pid for node in world.nodes.values() for pid in node.find(machine.Role.FORK_SERVER)]

    await _kill_some(servers, rng)
    yield


@fault("slots in stock killed", cost=Cost.CHEAP)
async def slots_in_stock_killed(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Processes that wait for a session die, perhaps as they are being bound."""

    async def stock() -> list[int]:
        bound = {resident.pid for resident in await world.residents()}
        there = [pid for node in world.nodes.values() for pid in node.find(machine.Role.SESSION)]
        return [pid for pid in there if pid not in bound]

    await _kill_some(stock, rng)
    yield


async def _kill_some(find: Callable[[], Awaitable[list[int]]], rng: random.Random) -> None:
    """Kill some of the processes that there are, at least one, after waiting for one."""
    pids = sorted(await victims.found(find, REACHED_TIMEOUT_S))
    for pid in rng.sample(pids, rng.randint(1, len(pids))):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await machine.dies(pid)


def _crash_at(point: probes.Point) -> None:
    @fault(f"crash at {point}", cost=Cost.CHEAP)
    async def crash(world: World, rng: random.Random) -> AsyncIterator[None]:
        """Whoever passes the point next dies there."""
        world.probes.arm(point)
        try:
            await _lead_to(world, rng, point)
            await _fired(world, point)
            yield
        finally:
            world.probes.disarm(point)


for _point in probes.Point:
    _crash_at(_point)


async def _lead_to(world: World, rng: random.Random, point: probes.Point) -> None:
    """Make a session pass a point that sessions under load seldom pass."""
    if point in _WAKING:
        victim = await victims.session(world, rng)
        world.signal(victim.pid, signal.SIGKILL)
    elif point in _LEAVING and (leaving := await victims.with_longest_tail(world)):
        await victims.evict(world, rng, leaving)


async def _fired(world: World, point: probes.Point) -> list[int]:
    """Return the processes that an armed point broke, after waiting for one.

    Raises:
        AssertionError: nobody came.
    """

    async def broke() -> list[int]:
        return world.probes.fired(point)

    return await victims.found(broke, REACHED_TIMEOUT_S)


@fault("owner frozen before its commit, taken over, thawed", cost=Cost.EXPENSIVE)
async def stale_owner_commits(world: World, rng: random.Random) -> AsyncIterator[None]:
    """An owner sends its commit after another node took the session over.

    Its node's agent hangs with it: else it would find and kill the silent process.
    """
    point = probes.Point.COMMIT_BEFORE
    world.probes.arm(point, probes.Armed(action=probes.Action.FREEZE))
    try:
        pids = await _fired(world, point)
    finally:
        world.probes.disarm(point)
    frozen = [each for each in await world.residents() if each.pid in pids]
    agents = [pid for each in frozen for pid in world.nodes[each.node].find(machine.Role.AGENT)]
    try:
        if not frozen:
            raise RuntimeError(f"of the processes {pids}, frozen at {point}, none holds a session")
        for pid in agents:
            world.signal(pid, signal.SIGSTOP)
        for each in frozen:
            await _taken_over(world, each.session, each.epoch)
        for pid in pids:
            world.signal(pid, signal.SIGCONT)
        yield
    finally:
        # Also what holds no session: others pass the point too.
        for pid in (*pids, *agents):
            world.signal(pid, signal.SIGCONT)
        await world.settled()


async def _taken_over(world: World, session: str, epoch: int) -> None:
    """Wait until a session has another owner.

    Raises:
        AssertionError: nobody called it, or nobody may take it over.
    """
    tenant, _, name = session.partition("/")
    key = records.SessionKey(tenant, name)

    async def is_elsewhere() -> bool:
        try:
            return (await world.store.sessions.head(key)).epoch > epoch
        except errors.NotFound:
            return True

    await eventually.assert_eventually(is_elsewhere, TAKEN_OVER_TIMEOUT_S)


def _kill_one(name: str, kill: Callable[[World, str], Awaitable[None]]) -> None:
    @fault(f"{name} killed", cost=Cost.EXPENSIVE)
    async def killed(world: World, rng: random.Random) -> AsyncIterator[None]:
        """One node's process of a kind dies."""
        await kill(world, victims.node(world, rng))
        try:
            yield
        finally:
            await world.settled()


_kill_one("node agent", World.kill_agent)
_kill_one("gateway", World.kill_gateway)
_kill_one("raylet", World.kill_raylet)


@fault("node agent frozen past its lease", cost=Cost.EXPENSIVE)
async def agent_frozen(world: World, rng: random.Random) -> AsyncIterator[None]:
    """A node's agent hangs while its sessions go on; others may take them over."""
    pids = world.nodes[victims.node(world, rng)].find(machine.Role.AGENT)
    try:
        for pid in pids:
            world.signal(pid, signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(1.2, 2.0) * world.lease_ttl_ms / 1000)
        yield
    finally:
        for pid in pids:
            world.signal(pid, signal.SIGCONT)
        await world.settled()


@fault("control plane killed", cost=Cost.CHEAP)
async def control_plane_killed(world: World, rng: random.Random) -> AsyncIterator[None]:
    """`torpor serve` dies; what it started lives on, and another one takes over."""
    world.control.kill()
    yield


@fault("GCS killed and restarted", cost=Cost.EXPENSIVE)
async def gcs_killed(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Ray's control service dies, is away for some seconds, and comes back with its store."""
    await world.kill_gcs()
    try:
        await asyncio.sleep(rng.uniform(0.0, GCS_AWAY_S))
        yield
    finally:
        await world.start_gcs()
        await world.settled()
