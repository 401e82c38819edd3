"""One event loop on one background thread, for callers that block."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


class BackgroundLoop:
    """Runs coroutines for threads that wait for them. Safe to use from several threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine and return its result; it is cancelled if the waiting is interrupted."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def iterate(self, items: AsyncGenerator[Result]) -> Generator[Result]:
        """Yield what an async generator yields, and close it when done or abandoned."""
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            # The generators that are left when the loop ends are closed by it.
            if not self._loop.is_closed():
                self.run(items.aclose())


async def _next(items: AsyncGenerator[Result]) -> Result:
    return await anext(items)


@contextmanager
def background_loop() -> Generator[BackgroundLoop]:
    """Yield a loop that runs on a thread of its own until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="torpor-client", daemon=True)
    thread.start()
    try:
        yield BackgroundLoop(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
