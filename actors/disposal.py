"""Threads for removing files and looking through them: it may take long, and no wake waits for it.

Wakes use the event loop's own threads, of which there are few.
"""

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: As many as one disk is kept busy by.
THREADS_MAX = 4
_POOL = concurrent.futures.ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="disposal")


async def aside(work: Callable[..., T], *arguments: object) -> T:
    """Return what `work(*arguments)` returns, which may take long."""
    return await asyncio.get_running_loop().run_in_executor(
        _POOL, functools.partial(work, *arguments)
    )
