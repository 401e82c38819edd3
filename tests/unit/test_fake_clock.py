"""The fake clock moves only when it is told to, and wakes sleepers in order."""

import asyncio

from torpor.testing import clock


async def test_sleepers_wake_in_order_of_time() -> None:
    """One advance wakes everybody whose time has come, at that time, and nobody else."""
    fake = clock.FakeClock(now_ms=1_000)
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, *naps_s: float) -> None:
        for nap_s in naps_s:
            await fake.sleep(nap_s)
            woken.append((name, fake.monotonic_s()))

    tasks = [
        asyncio.create_task(sleeper("late", 5.0)),
        asyncio.create_task(sleeper("twice", 1.0, 2.0)),
        asyncio.create_task(sleeper("never", 50.0)),
    ]
    await asyncio.sleep(0)
    assert fake.sleepers == 3
    await fake.advance(10.0)
    assert woken == [("twice", 1.0), ("twice", 3.0), ("late", 5.0)]
    assert (fake.monotonic_s(), fake.now_ms(), fake.sleepers) == (10.0, 11_000, 1)
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_cancelled_sleeper_is_forgotten() -> None:
    """A sleeper that was cancelled is woken by nobody and counted by nobody."""
    fake = clock.FakeClock()
    task = asyncio.create_task(fake.sleep(1.0))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert fake.sleepers == 0
    await fake.advance(2.0)
    assert fake.monotonic_s() == 2.0
