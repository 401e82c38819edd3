"""Waiting for conditions, and doing many things a few at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

#: How often a condition is looked at.
POLL_S = 0.1


async def until(check: Callable[[], Awaitable[bool]], what: str, timeout_s: float) -> None:
    """Return once `check` returns True.

    Raises:
        RuntimeError: it did not within `timeout_s`; says `what` was waited for.
    """
    until_s = time.monotonic() + timeout_s
    while not await check():
        if time.monotonic() >= until_s:
            raise RuntimeError(f"waited {timeout_s:g} s in vain until {what}")
        await asyncio.sleep(POLL_S)


async def few_at_a_time(calls: Iterable[Callable[[], Awaitable[T]]], at_once: int) -> list[T]:
    """Return what all calls return, in their order, with `at_once` of them under way."""
    permits = asyncio.Semaphore(at_once)

    async def one(call: Callable[[], Awaitable[T]]) -> T:
        async with permits:
            return await call()

    return await asyncio.gather(*(one(call) for call in calls))
