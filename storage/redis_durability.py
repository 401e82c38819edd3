"""Whether the server reaches the level of durability that the deployment names."""

from collections.abc import Sequence

import msgspec

from torpor import deployment, errors
from torpor.storage import redis_wire

#: WAITAOF gives up after this long, well before the wire gives up on the answer.
_BARRIER_TIMEOUT_MS = 4_000
_WAITAOF_SINCE = (7, 2)


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of itself."""

    #: Major and minor; Valkey states the version of Redis that it is compatible with.
    version: tuple[int, ...]
    aof_enabled: bool
    #: Replicas that follow; one that still copies does not count.
    replicas: int
    #: None if CONFIG is forbidden.
    appendfsync: str | None
    #: 0 for no limit.
    maxmemory_bytes: int
    maxmemory_policy: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How the level is reached."""

    #: Sent after each write; None when the server is durable by itself, or need not be.
    barrier: redis_wire.Barrier | None = None
    #: What could not be determined.
    notes: Sequence[str] = ()


async def inspect(wire: redis_wire.Wire) -> Server:
    """Ask the server. CONFIG is often forbidden by a managed Redis; INFO is not.

    Raises:
        StoreUnavailable
    """
    (info,) = await wire.read(("INFO",))
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    try:
        (setting,) = await wire.read(("CONFIG", "GET", "appendfsync"))
    except (errors.Internal, errors.StoreUnavailable):
        setting = []
    return Server(
        version=tuple(int(part) for part in facts["redis_version"].split(".")[:2]),
        aof_enabled=facts["aof_enabled"] == "1",
        replicas=sum("state=online" in fact for name, fact in facts.items() if name[:5] == "slave"),
        appendfsync=setting[1].decode() if setting else None,
        maxmemory_bytes=int(facts["maxmemory"]),
        maxmemory_policy=facts["maxmemory_policy"],
    )


def judge(server: Server, level: deployment.Durability) -> Verdict:
    """Say how the server reaches the level.

    Raises:
        StoreBelowDurability: it does not; the message names the setting, its value and the remedy.
    """
    if server.maxmemory_bytes and server.maxmemory_policy != "noeviction":
        raise errors.StoreBelowDurability(
            f"maxmemory-policy is {server.maxmemory_policy}, so a full Redis drops sessions; "
            "run CONFIG SET maxmemory-policy noeviction and keep it in redis.conf"
        )
    if level == deployment.Durability.MEMORY:
        return Verdict()
    if not server.aof_enabled:
        raise errors.StoreBelowDurability(
            "appendonly is no, so a restart of Redis loses acknowledged writes, and durability "
            f"is {level}; run CONFIG SET appendonly yes and keep it in redis.conf, or set "
            "durability to memory"
        )
    if level == deployment.Durability.REPLICATED:
        return _replicated(server)
    return _fsync(server)


def _fsync(server: Server) -> Verdict:
    if server.appendfsync == "always":
        return Verdict()
    if server.version >= _WAITAOF_SINCE:
        setting = server.appendfsync or "unknown, since CONFIG is forbidden"
        note = f"appendfsync is {setting}: each write waits with WAITAOF, which may take a second"
        return Verdict(barrier=_barrier(replicas=0), notes=(note,))
    if server.appendfsync is None:
        note = (
            "CONFIG is forbidden and Redis is older than 7.2: appendfsync could not be determined"
        )
        return Verdict(notes=(note,))
    raise errors.StoreBelowDurability(
        f"appendfsync is {server.appendfsync}, so Redis answers before the disk has a write, and "
        "durability is fsync; run CONFIG SET appendfsync always and keep it in redis.conf, or use "
        "Redis 7.2 or newer"
    )


def _replicated(server: Server) -> Verdict:
    version = ".".join(map(str, server.version))
    if server.version < _WAITAOF_SINCE:
        raise errors.StoreBelowDurability(
            f"redis_version is {version}, and durability replicated needs WAITAOF; use Redis 7.2 "
            "or newer, or set durability to fsync"
        )
    if server.replicas == 0:
        raise errors.StoreBelowDurability(
            "no slave is online in INFO replication, and durability replicated needs one; connect "
            "a replica that has appendonly yes, or set durability to fsync"
        )
    return Verdict(barrier=_barrier(replicas=1))


def _barrier(*, replicas: int) -> redis_wire.Barrier:
    return redis_wire.Barrier(local=1, replicas=replicas, timeout_ms=_BARRIER_TIMEOUT_MS)
