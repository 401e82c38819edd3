"""What a wake costs, and what one more live session costs."""

import asyncio

import psutil
import ray

from loadtests import figures, floors, world

WAKES = 15
LIVE = 100
#: Created at a time while 100 are brought up.
AT_ONCE = 4


async def wake(here: world.World) -> list[figures.Figure]:
    """A wake, from the call to the committed reply, in turns with a stock actor's creation."""
    session = await here.session("ledger")
    await session.send(world.MESSAGE)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    wakes, stocks = [], []
    for i in range(WAKES):
        await session.evict()
        await asyncio.sleep(0.5)
        wakes.append(await floors.timed_async_s(lambda: session.send(world.MESSAGE)))
        await asyncio.sleep(0.5)
        stocks.append(floors.timed_s(lambda i=i: floors.stock_actor(nodes[i % len(nodes)])))  # type: ignore[misc]
    return [
        figures.figure(
            "wake of an evicted session, p50",
            "ms",
            figures.p50(wakes) * 1000,
            floor=figures.p50(stocks) * 1000,
            target=1.3,
            against="a stock Ray actor, creation to first reply",
        )
    ]


async def density(here: world.World) -> list[figures.Figure]:
    """Whole-machine memory and CPU before and after 100 live sessions."""
    sessions = [await here.session("ledger") for _ in range(LIVE)]
    permits = asyncio.Semaphore(AT_ONCE)

    async def bring_up(i: int) -> None:
        async with permits:
            await sessions[i].send(world.MESSAGE)

    before = psutil.virtual_memory().available
    cpu_before = sum(psutil.cpu_times()[:3])
    await asyncio.gather(*(bring_up(i) for i in range(LIVE)))
    spent_s = sum(psutil.cpu_times()[:3]) - cpu_before
    used = before - psutil.virtual_memory().available
    live = sum([(await session.get()).resident for session in sessions])
    if live < LIVE:
        raise RuntimeError(f"only {live} of {LIVE} sessions are live: memory is short")
    return [
        figures.figure("memory of one more live session", "MB", used / LIVE / 1e6),
        figures.figure("CPU of bringing one up, first turn included", "s", spent_s / LIVE),
    ]
