"""How evenly placement spreads unequal sessions while something else busies a node."""

import asyncio
import contextlib
import random
import time
from typing import Any

import ray

from loadtests import figures, world
from torpor.client.sessions import Session

SESSIONS = 60
#: A turn of each session this often.
TURN_EVERY_S = 2.0
#: CPU of a turn: most sessions are light, every sixth is ten times heavier.
LIGHT_MS, HEAVY_MS = 10.0, 100.0
#: Of one core, used on one node by something that is not ours.
OUTSIDE_CORES = 0.25
MEASURE_S = 24.0
RANDOM_TRIES = 2_000


class Outsider:
    """Uses a share of a core on its node."""

    def burn(self, cores: float, seconds: float) -> None:
        """Burn for a while, a tenth of a second at a time."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            spent_s = time.thread_time() + 0.1 * cores
            while time.thread_time() < spent_s:
                pass
            time.sleep(0.1 * (1 - cores))


async def balance(here: world.World) -> list[figures.Figure]:
    """Busiest over mean of the nodes' live load, placed by load and placed at random."""
    rng = random.Random(7)
    weights = [HEAVY_MS if i % 6 == 0 else LIGHT_MS for i in range(SESSIONS)]
    rng.shuffle(weights)
    busied = (await here.client.admin.nodes())[1]
    outsider: Any = (
        ray.remote(Outsider)
        .options(num_cpus=0, label_selector={"ray.io/node-id": busied.id})  # type: ignore[attr-defined]
        .remote()
    )
    outsider.burn.remote(OUTSIDE_CORES, 600.0)
    sessions = [await here.session("burner") for _ in weights]
    traffic = []
    try:
        for session, weight in zip(sessions, weights, strict=True):
            await session.send(f"{weight}")
            traffic.append(asyncio.create_task(_talk(session, weight, rng.random())))
        before = [await session.get() for session in sessions]
        began_s = time.monotonic()
        await asyncio.sleep(MEASURE_S)
        after = [await session.get() for session in sessions]
        elapsed_ms = (time.monotonic() - began_s) * 1000
    finally:
        for task in traffic:
            task.cancel()
        await asyncio.gather(*traffic, return_exceptions=True)
        ray.kill(outsider)
    cores = [
        (b.usage.cpu_ms - a.usage.cpu_ms) / elapsed_ms for a, b in zip(before, after, strict=True)
    ]
    nodes = sorted({node.id for node in await here.client.admin.nodes()})
    placed = _busiest_over_mean([info.node for info in after], cores, nodes, busied.id)
    at_random = [
        _busiest_over_mean(rng.choices(nodes, k=SESSIONS), cores, nodes, busied.id)
        for _ in range(RANDOM_TRIES)
    ]
    return [
        figures.figure(
            f"busiest / mean live load, {SESSIONS} sessions on {len(nodes)} nodes",
            "",
            placed,
            floor=1.0,
            target=1.25,
            against=f"an even spread; random placement: {figures.p50(at_random):.2f} "
            f"(sessions {sum(cores):.2f} cores, outside {OUTSIDE_CORES} on one node)",
        )
    ]


def _busiest_over_mean(
    where: list[str], cores: list[float], nodes: list[str], busied: str
) -> float:
    load = dict.fromkeys(nodes, 0.0)
    load[busied] += OUTSIDE_CORES
    for node, used in zip(where, cores, strict=True):
        load[node] += used
    return max(load.values()) / (sum(load.values()) / len(nodes))


async def _talk(session: Session, weight_ms: float, phase: float) -> None:
    await asyncio.sleep(TURN_EVERY_S * phase)
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await session.send(f"{weight_ms}")
            await asyncio.sleep(TURN_EVERY_S)
