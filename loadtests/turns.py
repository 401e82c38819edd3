"""What a durable turn costs: in time, in bytes written, and asleep in Redis."""

import pathlib
from typing import Any

import ray
import redis

from loadtests import figures, floors, ray_actors, world
from torpor.client.sessions import Session

#: Long and short history.
MANY, FEW = 2_000, 10
#: Turns over which written bytes are averaged at the long end: some sealing falls into each.
BYTES_WINDOW = 256
SAMPLES = 500


async def warm_turn(here: world.World) -> list[figures.Figure]:
    """A warm durable turn against the sum of its bare parts, one after the other."""
    session = await here.session("ledger")
    await session.send(world.MESSAGE)
    info = await session.get()
    other = next(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != info.node)
    actor = await ray_actors.start(other)
    script = floors.fenced_script(here.local.deployment.store_url)
    turns, echoes, calls, scripts = [], [], [], []
    async with floors.grpc_echo() as echo:
        await echo()
        for _ in range(SAMPLES):
            turns.append(await floors.timed_async_s(lambda: session.send(world.MESSAGE)))
            echoes.append(await floors.timed_async_s(echo))
            calls.append(floors.timed_s(actor.echo))
            scripts.append(floors.timed_s(script))
    parts = [figures.p50(samples) * 1000 for samples in (echoes, calls, scripts)]
    against = "gRPC echo {:.2f} + Ray call {:.2f} + fenced script {:.2f} ms".format(*parts)
    value = figures.p50(turns) * 1000
    await actor.end()
    return [
        figures.figure(
            f"warm durable turn, p50 of {SAMPLES}",
            "ms",
            value,
            floor=sum(parts),
            target=0.8,
            against=against,
        ),
        figures.figure(f"warm durable turn, p99 of {SAMPLES}", "ms", figures.p99(turns) * 1000),
    ]


async def long_history(here: world.World) -> list[figures.Figure]:
    """The same turn, and the bytes it writes, after 2,000 turns and after 10; then asleep."""
    long, short = await here.session("ledger"), await here.session("ledger")
    for _ in range(FEW):
        await short.send(world.MESSAGE)
    store = redis.Redis.from_url(here.local.deployment.store_url)
    early = await _bytes_per_turn(here, store, short, FEW)
    for _ in range(MANY):
        await long.send(world.MESSAGE)
    # A rewrite of the append-only file would hide what was written before it.
    rewrites = store.info("persistence")["aof_rewrites"]
    late = await _bytes_per_turn(here, store, long, BYTES_WINDOW)
    if store.info("persistence")["aof_rewrites"] != rewrites:
        raise RuntimeError("the append-only file was rewritten while its growth was measured")
    many, few = [], []
    for _ in range(SAMPLES // 2):
        many.append(await floors.timed_async_s(lambda: long.send(world.MESSAGE)))
        few.append(await floors.timed_async_s(lambda: short.send(world.MESSAGE)))
    slim = await here.session("ledger")
    for _ in range(FEW):
        await slim.send(world.MESSAGE)
    asleep = {}
    for session in (slim, long):
        await session.evict()
        asleep[session.id] = _asleep_bytes(store, session)
    return [
        figures.figure(
            f"turn at {MANY} turns of history, p50",
            "ms",
            figures.p50(many) * 1000,
            floor=figures.p50(few) * 1000,
            target=1.15,
            against=f"at {2 * FEW} to {2 * FEW + len(few)} turns",
        ),
        figures.figure(
            f"bytes written a turn at {MANY} turns",
            "bytes",
            late,
            floor=early,
            target=1.1,
            against=f"at {FEW} turns; append-only file and shared storage",
        ),
        figures.figure(
            f"Redis bytes of a sleeping session at {MANY} turns",
            "bytes",
            asleep[long.id],
            floor=asleep[slim.id],
            target=1.5,
            against=f"at {FEW} turns",
        ),
    ]


async def _bytes_per_turn(here: world.World, store: Any, session: Session, turns: int) -> float:
    before = _written(here, store)
    for _ in range(turns):
        await session.send(world.MESSAGE)
    return (_written(here, store) - before) / turns


def _written(here: world.World, store: Any) -> int:
    blobs = (
        p for p in pathlib.Path(here.local.deployment.storage).rglob("blobs/*/*") if p.is_file()
    )
    return int(store.info("persistence")["aof_current_size"]) + sum(p.stat().st_size for p in blobs)


def _asleep_bytes(store: Any, session: Session) -> int:
    keys = list(store.scan_iter(match=f"*/{session.id}}}:*", count=10_000))
    return sum(store.memory_usage(key, samples=0) for key in keys)
