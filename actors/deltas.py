"""Provisional pieces of a reply, on their way to whoever watches."""

import asyncio
import contextlib

from torpor import clock, errors
from torpor.storage import records, store

#: Pieces are gathered this long: a model's tokens come every few ms, a person reads at 20 frames a
#: second.
GATHER_S = 0.04
#: What is gathered while the store is slow; beyond it the oldest is dropped, the commit has it all
#: anyway.
GATHERED_CHARS_MAX = 64 << 10


class Deltas:
    """Gathers what `ctx.stream` is given and publishes it, off the turn's path."""

    def __init__(self, feed: store.Feed, key: records.SessionKey, clock: clock.Clock) -> None:
        self._feed = feed
        self._key = key
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._gathered = ""
        self._sending: asyncio.Task[None] | None = None

    def add_from_any_thread(self, text: str) -> None:
        """Take a piece; returns at once."""
        self._loop.call_soon_threadsafe(self._add, text)

    def _add(self, text: str) -> None:
        self._gathered = (self._gathered + text)[-GATHERED_CHARS_MAX:]
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._gathered:
                await self._clock.sleep(GATHER_S)
                piece, self._gathered = self._gathered, ""
                with contextlib.suppress(errors.Unavailable):
                    await self._feed.publish_delta(self._key, piece.encode())
        finally:
            self._sending = None
