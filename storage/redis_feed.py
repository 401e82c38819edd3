"""Nudges to watchers: one pub/sub connection a process, however many watch."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from redis import exceptions
from redis.asyncio import connection as redis_connection

from torpor import errors
from torpor.storage import keys, records, redis_wire

_log = logging.getLogger(__name__)

COMMITTED = b"c"
DELTA = b"d"

#: Nudges that wait for one subscriber; the oldest is dropped, since nudges are only nudges.
QUEUE_MAX = 256
#: How long a subscriber waits for the server; then it goes on without nudges, and polls.
CONFIRM_TIMEOUT_S = 2.0
#: Between attempts to connect: quick enough for a watcher, slow enough for a starting server.
RECONNECT_PAUSE_S = 0.5


class RedisFeed:
    """`torpor.storage.store.Feed` on Redis."""

    def __init__(self, wire: redis_wire.Wire) -> None:
        self._wire = wire
        self._channels: dict[bytes, _Channel] = {}
        self._connection: redis_connection.AbstractConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    async def publish_delta(self, key: records.SessionKey, delta: bytes) -> None:
        """Send a provisional piece to whoever watches now."""
        await self._wire.read(("PUBLISH", keys.live(key), DELTA + delta))

    async def subscribe(self, key: records.SessionKey) -> AsyncIterator[bytes]:
        """Yield `b"c"` once at the start and after each commit, and `b"d" + delta`.

        The first comes when the subscription stands: what is committed after it is not missed.
        """
        name = keys.live(key).encode()
        queue = asyncio.Queue[bytes](QUEUE_MAX)
        try:
            channel = await self._join(name, queue)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONFIRM_TIMEOUT_S):
                    await channel.confirmed.wait()
            yield COMMITTED
            while True:
                yield await queue.get()
        finally:
            await self._leave(name, queue)

    async def close(self) -> None:
        """End the connection; subscribers get no more nudges."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None

    async def _join(self, name: bytes, queue: asyncio.Queue[bytes]) -> "_Channel":
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel()
            channel.queues.append(queue)
            await self._send("SUBSCRIBE", name)
        else:
            channel.queues.append(queue)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_for_ever(), name="torpor-feed")
        return channel

    async def _leave(self, name: bytes, queue: asyncio.Queue[bytes]) -> None:
        channel = self._channels.get(name)
        if channel is None or queue not in channel.queues:
            return
        channel.queues.remove(queue)
        if not channel.queues:
            del self._channels[name]
            await self._send("UNSUBSCRIBE", name)

    async def _send(self, verb: str, *names: bytes) -> None:
        """Send if connected; otherwise the reader subscribes to everything once it is."""
        if self._connection is None:
            return
        with contextlib.suppress(exceptions.RedisError):
            await self._connection.send_command(verb, *names, check_health=False)

    async def _read_for_ever(self) -> None:
        while True:
            try:
                await self._read_until_lost()
            except (errors.StoreUnavailable, exceptions.RedisError) as error:
                _log.info(
                    "feed connection is down", extra={"action": "feed_down", "why": str(error)}
                )
            await asyncio.sleep(RECONNECT_PAUSE_S)

    async def _read_until_lost(self) -> None:
        connection = self._connection = await self._wire.connect()
        try:
            if self._channels:
                await self._send("SUBSCRIBE", *self._channels)
            while True:
                self._take(await connection.read_response())
        finally:
            self._connection = None
            await connection.disconnect(nowait=True)

    def _take(self, frame: list[bytes]) -> None:
        kind, name, payload = frame[:3]
        channel = self._channels.get(name)
        if channel is None:
            return
        if kind == b"subscribe":
            if channel.confirmed.is_set():
                # The connection was lost in between, and nudges with it.
                channel.offer(COMMITTED)
            channel.confirmed.set()
        elif kind == b"message":
            channel.offer(payload)


class _Channel:
    """The subscribers of one session in this process."""

    def __init__(self) -> None:
        self.queues: list[asyncio.Queue[bytes]] = []
        self.confirmed = asyncio.Event()

    def offer(self, nudge: bytes) -> None:
        for queue in self.queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(nudge)
