"""Faults of shared storage: full, slow, and not what it promised to keep."""

import asyncio
import contextlib
import errno
import os
import pathlib
import random
from collections.abc import AsyncIterator, Callable

import damage
import torpor
from fault import Cost, fault
from torpor import errors, limits, probes
from torpor.storage import records
from torpor.testing import eventually, workspaces
from world import World

#: Fills the storage; torpor looks into the folders of tenants alone.
BALLAST_FILE = ".ballast"
#: KiB that the witness's state and a file are made to hold: more than the store keeps inline.
STORED_KIB = 40
#: Sessions that are tried: the load may wake one at any moment.
TRIES_MAX = 10
_CALL_TIMEOUT_S = 10.0

Break = Callable[[pathlib.Path, random.Random], None]


@fault("storage full", cost=Cost.CHEAP)
async def full(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Not a byte more, or a few, can be written."""
    ballast = world.storage / BALLAST_FILE
    try:
        await asyncio.to_thread(fill, ballast, rng.randrange(64 << 10))
        yield
    finally:
        ballast.unlink(missing_ok=True)


@fault("storage stalls", cost=Cost.CHEAP)
async def stalls(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Each blob takes seconds to write and to read, as on a disk or a network that hangs."""
    points = (probes.Point.BLOB_BEFORE, probes.Point.BLOB_READ)
    stall = probes.Armed(action=probes.Action.STALL, seconds=rng.uniform(0.5, 3.0), stays=True)
    try:
        for point in points:
            world.probes.arm(point, stall)
        yield
    finally:
        for point in points:
            world.probes.disarm(point)


@fault("upload torn", cost=Cost.CHEAP, loses=True)
async def torn(world: World, rng: random.Random) -> AsyncIterator[None]:
    """The disk kept the beginning of a blob that it had promised to keep."""
    await _damage(world, rng, rng.choice(list(damage.Kind)), tear)
    yield


@fault("bit flipped in a state", cost=Cost.CHEAP, loses=True)
async def state_flipped(world: World, rng: random.Random) -> AsyncIterator[None]:
    """An agent's state is not what was written; it must not be unpickled."""
    await _damage(world, rng, damage.Kind.STATE, flip)
    yield


@fault("bit flipped in a manifest", cost=Cost.CHEAP, loses=True)
async def manifest_flipped(world: World, rng: random.Random) -> AsyncIterator[None]:
    """What says which files a workspace has is not what was written."""
    await _damage(world, rng, damage.Kind.MANIFEST, flip)
    yield


@fault("bit flipped in a file", cost=Cost.CHEAP, loses=True)
async def file_flipped(world: World, rng: random.Random) -> AsyncIterator[None]:
    """A file of a workspace is not what was written."""
    await _damage(world, rng, damage.Kind.FILE, flip)
    yield


def fill(ballast: pathlib.Path, spare_bytes: int) -> None:
    """Make a file that takes all the room of its disk but so many bytes."""
    with ballast.open("wb") as file:
        size = 0
        # Others write meanwhile, so the room is found by trying, in ever smaller pieces.
        for piece in (1 << power for power in range(30, 11, -1)):
            with contextlib.suppress(_NoRoom):
                while True:
                    _allocate(file.fileno(), size, piece)
                    size += piece
        os.ftruncate(file.fileno(), max(0, size - spare_bytes))


class _NoRoom(Exception):
    """The disk has no room for so much."""


def _allocate(descriptor: int, offset: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, offset, size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _NoRoom from error


def tear(blob: pathlib.Path, rng: random.Random) -> None:
    """Cut a blob off somewhere."""
    os.truncate(blob, rng.randrange(blob.stat().st_size))


def flip(blob: pathlib.Path, rng: random.Random) -> None:
    """Change one bit of a blob; its size stays."""
    offset = rng.randrange(blob.stat().st_size)
    with blob.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))


async def _damage(world: World, rng: random.Random, kind: damage.Kind, how: Break) -> None:
    """Damage a blob of the newest version of a session that sleeps; `world.damaged` says which.

    The next call finds it.
    """
    for _ in range(TRIES_MAX):
        key = await _some_session(world, rng)
        gateway = rng.choice(sorted(world.gateways))
        # Others call it, and may keep it awake, delete it, or find other damage there.
        with contextlib.suppress(errors.TorporError, AssertionError):
            await _store_and_sleep(world, key, gateway)
            points = await world.store.sessions.restore_points(key)
            found = await asyncio.to_thread(damage.own, world.storage, key.tenant, points)
            digests = [digest for each, digest in found if each is kind]
            # A session whose only state is damaged stays asleep until somebody brings it back.
            can_wake = kind is not damage.Kind.STATE or len(points) > 1
            if can_wake and digests and (await world.store.sessions.head(key)).owner is None:
                digest = rng.choice(digests)
                world.damaged.append(
                    damage.Damaged(
                        key=key,
                        version=points[0].version,
                        whole=points[1].version if len(points) > 1 else 0,
                        kind=kind,
                        digest=digest,
                    )
                )
                how(damage.path(world.storage, key.tenant, digest), rng)
                return
    raise TimeoutError(f"none of {TRIES_MAX} sessions slept with a {kind} of its own")


async def _some_session(world: World, rng: random.Random) -> records.SessionKey:
    tenant = rng.choice(sorted(world.api_keys))
    heads, _ = await world.store.sessions.page(tenant, after="", limit=limits.PAGE_SESSIONS_MAX)
    ready = [head.key for head in heads if head.status is not records.Status.PAUSED]
    return rng.choice(sorted(ready, key=str))


async def _store_and_sleep(world: World, key: records.SessionKey, gateway: str) -> None:
    """Have a session write blobs that no version before has, and put it to sleep."""
    async with torpor.connect(gateway, api_key=world.api_keys[key.tenant]) as client:
        session = client.sessions.handle(key.session)
        await session.send("read", data={"blob": STORED_KIB}, timeout_s=_CALL_TIMEOUT_S)
        await session.evict(timeout_s=_CALL_TIMEOUT_S)

    async def gone() -> bool:
        return all(each.session != str(key) for each in await world.residents())

    # A node that kept the files would not look at what is stored of them.
    await eventually.assert_eventually(gone, _CALL_TIMEOUT_S)
    await asyncio.to_thread(workspaces.forget_left, world.place.scratch, key)
