"""Wait for a condition instead of for a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def assert_eventually(
    check: Callable[[], Awaitable[object]], timeout_s: float = 10.0, interval_s: float = 0.02
) -> None:
    """Return once `check` returns something true; it may raise AssertionError until then.

    Raises:
        AssertionError: it did not within `timeout_s`; the last failure is its cause.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        last: AssertionError | None = None
        try:
            if await check():
                return
        except AssertionError as error:
            last = error
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"not within {timeout_s} s") from last
        await asyncio.sleep(interval_s)


async def until(check: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until something that can be seen at once is so; see `assert_eventually`."""

    async def look() -> object:
        return check()

    await assert_eventually(look, timeout_s)
