"""Whom a fault hits: chosen by the seed among those who are there."""

import asyncio
import collections
import contextlib
import pathlib
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import residents
import torpor
from torpor import errors
from torpor.storage import records
from torpor.testing import eventually
from world import World

Item = TypeVar("Item")

#: Under load there is a resident session, or soon will be.
TIMEOUT_S = 30.0
_EVICT_TIMEOUT_S = 10.0


async def found(look: Callable[[], Awaitable[list[Item]]], timeout_s: float) -> list[Item]:
    """Return what a look finds, after waiting for one that finds something.

    To look once more might find nothing again.

    Raises:
        AssertionError: there is nothing within `timeout_s`.
    """
    seen: list[Item] = []

    async def something() -> bool:
        seen[:] = await look()
        return bool(seen)

    await eventually.assert_eventually(something, timeout_s)
    return seen


async def session(world: World, rng: random.Random) -> residents.Resident:
    """Return a process that holds a session, after waiting for one.

    Raises:
        AssertionError: there is none within `TIMEOUT_S`.
    """
    there = await found(world.residents, TIMEOUT_S)
    return rng.choice(sorted(there, key=lambda each: each.session))


def node(world: World, rng: random.Random) -> str:
    """Return a node's name."""
    return rng.choice(list(world.nodes))


async def fullest_node(world: World) -> str:
    """Return the node with the most sessions."""
    counted = collections.Counter(dict.fromkeys(world.nodes, 0))
    counted.update(each.node for each in await world.residents())
    return counted.most_common(1)[0][0]


@contextlib.asynccontextmanager
async def turn_held(world: World, resident: residents.Resident) -> AsyncIterator[None]:
    """Let a session be in the middle of a turn, which ends only after the body.

    Raises:
        AssertionError: it did not come to the turn.
    """
    key = _key(resident.session)
    # Not by the gateway of its own node, which may not answer for long.
    gateway = next(node.gateway for name, node in world.nodes.items() if name != resident.node)
    with tempfile.TemporaryDirectory() as folder:
        gate = pathlib.Path(folder, "open")
        begun = pathlib.Path(f"{gate}.here")

        async def send() -> None:
            async with torpor.connect(gateway, api_key=world.api_keys[key.tenant]) as client:
                handle = client.sessions.handle(key.session)
                with contextlib.suppress(errors.TorporError):
                    await handle.send("read", data={"wait": str(gate)}, timeout_s=TIMEOUT_S)

        sending = asyncio.create_task(send())
        try:
            await eventually.assert_eventually(lambda: asyncio.to_thread(begun.exists), TIMEOUT_S)
            yield
        finally:
            await asyncio.to_thread(gate.touch)
            await sending


async def with_longest_tail(world: World) -> residents.Resident | None:
    """Return the resident session with the most events in the store, if there is one."""
    tails = [(await _tail(world, each), each) for each in await world.residents()]
    return max(tails, key=lambda tail: tail[0])[1] if tails else None


async def _tail(world: World, resident: residents.Resident) -> int:
    try:
        head = await world.store.sessions.head(_key(resident.session))
    except errors.NotFound:
        return 0
    return head.next_seq - head.hot_from


async def evict(world: World, rng: random.Random, resident: residents.Resident) -> None:
    """Ask a session to leave through a gateway; whether it does is not said."""
    key = _key(resident.session)
    gateway, api_key = rng.choice(world.gateways), world.api_keys[key.tenant]
    try:
        async with torpor.connect(gateway, api_key=api_key) as client:
            found = await client.sessions.get(key.session, timeout_s=_EVICT_TIMEOUT_S)
            await found.evict(timeout_s=_EVICT_TIMEOUT_S)
    except errors.TorporError:
        return  # it may be in the middle of what is being broken


def _key(name: str) -> records.SessionKey:
    tenant, _, key = name.partition("/")
    return records.SessionKey(tenant, key)
