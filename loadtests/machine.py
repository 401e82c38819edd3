"""CPU and memory of the whole machine, since no process's own account says all that one costs."""

import asyncio
import collections
import statistics
import sys
import time
from collections.abc import Awaitable

import psutil

#: Memory that moved by no more than this over so many looks, a second apart, has settled.
SETTLED_BYTES = 24 << 20
SETTLED_LOOKS = 6
#: Memory that has not settled by then is taken as it is, and that is said.
LOOKS_MAX = 60


def cpu_s() -> float:
    """Return the CPU-seconds that the machine has spent since it started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


async def spent_s(work: Awaitable[object]) -> float:
    """Return the CPU-seconds of `work`, less those of as long a time without it, right after."""
    before_s, began_s = cpu_s(), time.monotonic()
    await work
    between_s, elapsed_s = cpu_s(), time.monotonic() - began_s
    await asyncio.sleep(elapsed_s)
    return (between_s - before_s) - (cpu_s() - between_s)


async def available_bytes() -> float:
    """Return the machine's available memory once it has settled."""
    looks: collections.deque[int] = collections.deque(maxlen=SETTLED_LOOKS)
    for _ in range(LOOKS_MAX):
        looks.append(psutil.virtual_memory().available)
        if len(looks) == SETTLED_LOOKS and max(looks) - min(looks) <= SETTLED_BYTES:
            break
        await asyncio.sleep(1.0)
    else:
        moving = (max(looks) - min(looks)) / 1e6
        print(f"memory still moves by {moving:.0f} MB", file=sys.stderr)
    return statistics.median(looks)
