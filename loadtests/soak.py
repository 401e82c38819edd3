"""Whether Ray's head and raylets stay as large as they are while sessions come and go."""

import functools
import sys
from collections.abc import Sequence

import psutil

from loadtests import figures, waiting, world
from torpor.client.sessions import Session

#: Ray keeps this many dead actors: before that it grows, and may.
GROWING_CYCLES = 2_500
#: Cycles between two looks, the same number of each session.
BLOCK = 200
SESSIONS, AT_ONCE = 8, 4
#: What is called flat: a hundred thousand a day would take 100 MB of what has gigabytes.
MB_PER_1000_MAX = 1.0


async def soak(here: world.World, cycles: int) -> list[figures.Figure]:
    """Resident memory of `gcs_server` and raylets over wakes and evictions.

    Raises:
        RuntimeError: too few cycles to tell growing from filling up.
    """
    if cycles < GROWING_CYCLES + 3 * BLOCK:
        raise RuntimeError(f"a soak takes at least {GROWING_CYCLES + 3 * BLOCK} cycles")
    sessions = [await here.session("ledger") for _ in range(SESSIONS)]
    looks: list[dict[str, float]] = []
    for done in range(0, cycles, BLOCK):
        each = BLOCK // SESSIONS
        work = [functools.partial(_wake_and_evict, session, each) for session in sessions]
        await waiting.few_at_a_time(work, AT_ONCE)
        looks.append(_resident_mb())
        told = ", ".join(f"{name} {mb:.1f} MB" for name, mb in looks[-1].items())
        print(f"{done + BLOCK} cycles: {told}", file=sys.stderr)
    flat = looks[GROWING_CYCLES // BLOCK :]
    return [_row(name, [look[name] for look in flat], cycles) for name in flat[-1]]


def _row(name: str, held_mb: Sequence[float], cycles: int) -> figures.Figure:
    grows_mb = figures.slope(held_mb) * 1000 / BLOCK
    return figures.figure(
        f"{name} grows over 1,000 wakes and evictions",
        "MB",
        grows_mb,
        floor=MB_PER_1000_MAX,
        target=1.0,
        against=f"what is called flat; the last {len(held_mb) * BLOCK} of {cycles} cycles, "
        f"{held_mb[-1]:.0f} MB in the end",
    )


async def _wake_and_evict(session: Session, times: int) -> None:
    for _ in range(times):
        await session.send(world.MESSAGE)
        await session.evict()


def _resident_mb() -> dict[str, float]:
    """Return what the processes of each kind hold together, among this process's descendants.

    Raises:
        RuntimeError: there is none of one kind.
    """
    held = {"gcs_server": 0.0, "raylet": 0.0}
    for process in psutil.Process().children(recursive=True):
        try:
            name = process.name()
            if name in held:
                held[name] += process.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            continue
    if not all(held.values()):
        raise RuntimeError(f"not all of Ray's processes are found: {held}")
    return held
