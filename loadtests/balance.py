"""How evenly placement spreads unequal sessions while something else busies a node."""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import psutil
import ray

from loadtests import figures, processes, world
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
#: How Ray titles the processes of sessions, and the one that is not ours.
SESSION, OUTSIDER = "ray::AgentSession", "ray::Outsider"


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One that is measured: a session's, a slot's in stock, or the outsider's."""

    pid: int
    #: Whether it is not ours.
    outside: bool
    #: Stands for its node.
    raylet: str


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
        .options(num_cpus=0, label_selector={"ray.io/node-id": busied.id})
        .remote()
    )
    outsider.burn.remote(OUTSIDE_CORES, 600.0)
    sessions = [await here.session("burner") for _ in weights]
    traffic = []
    try:
        for session, weight in zip(sessions, weights, strict=True):
            await session.send(f"{weight}")
            traffic.append(asyncio.create_task(_talk(session, weight, rng.random())))
        cores = await _cores_used()
    finally:
        for task in traffic:
            task.cancel()
        await asyncio.gather(*traffic, return_exceptions=True)
        ray.kill(outsider)
    return [row(cores, rng)]


def row(cores: Mapping[Process, float], rng: random.Random) -> figures.Figure:
    """Return what the cores that processes used say of their placement.

    Raises:
        RuntimeError: not all processes, or not all nodes, or others' were measured.
    """
    nodes = sorted({process.raylet for process in cores})
    ours = [(process.raylet, used) for process, used in cores.items() if not process.outside]
    extra = {process.raylet: used for process, used in cores.items() if process.outside}
    if len(ours) < SESSIONS or len(extra) != 1 or len(nodes) != world.NODES:
        raise RuntimeError(
            f"{len(ours)} processes of sessions and {len(extra)} other on {len(nodes)} nodes were "
            f"measured, not {SESSIONS} and 1 on {world.NODES}"
        )
    at_random = [
        _busiest_over_mean([(rng.choice(nodes), used) for _, used in ours], nodes, extra)
        for _ in range(RANDOM_TRIES)
    ]
    inside, outside = sum(used for _, used in ours), sum(extra.values())
    return figures.figure(
        f"busiest / mean live load, {SESSIONS} sessions on {len(nodes)} nodes",
        "",
        _busiest_over_mean(ours, nodes, extra),
        floor=1.0,
        target=1.25,
        against=f"an even spread; random placement: {figures.p50(at_random):.2f} "
        f"(CPU of sessions {inside:.2f} cores, outside {outside:.2f} on one node)",
    )


async def _cores_used() -> dict[Process, float]:
    """Return the cores that sessions and the outsider used over a while.

    The processes' own CPU time, so that nothing depends on what torpor believes of itself.
    """
    before, began_s = cpu_s(), time.monotonic()
    await asyncio.sleep(MEASURE_S)
    after, elapsed_s = cpu_s(), time.monotonic() - began_s
    return {
        process: (after[process] - spent_s) / elapsed_s
        for process, spent_s in before.items()
        if process in after
    }


def cpu_s() -> dict[Process, float]:
    """Return the CPU-seconds that sessions' processes and the outsider's have used."""
    spent = {}
    for process in psutil.process_iter(["cmdline", "environ", "cpu_times"]):
        title = " ".join(process.info["cmdline"] or ())
        # While it runs a method, Ray titles a process `ray::AgentSession.deliver`.
        if title.startswith((SESSION, OUTSIDER)):
            found = Process(
                pid=process.pid,
                outside=title.startswith(OUTSIDER),
                raylet=processes.raylet(process.info["environ"]),
            )
            times = process.info["cpu_times"]
            spent[found] = times.user + times.system
    return spent


def _busiest_over_mean(
    sessions: Iterable[tuple[str, float]], nodes: list[str], outside: dict[str, float]
) -> float:
    load = dict.fromkeys(nodes, 0.0) | outside
    for node, used in sessions:
        load[node] += used
    return max(load.values()) / (sum(load.values()) / len(nodes))


async def _talk(session: Session, weight_ms: float, phase: float) -> None:
    await asyncio.sleep(TURN_EVERY_S * phase)
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await session.send(f"{weight_ms}")
            await asyncio.sleep(TURN_EVERY_S)
