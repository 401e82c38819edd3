"""The wake index in Redis: one sorted set a shard."""

from torpor import clock
from torpor.storage import keys, records, redis_wire


class RedisWakeIndex:
    """`torpor.storage.store.WakeIndex` on Redis."""

    def __init__(self, wire: redis_wire.Wire, time: clock.Clock) -> None:
        self._wire = wire
        self._time = time

    async def ensure(self, key: records.SessionKey) -> None:
        """Write the hint unless it is there."""
        index = keys.wake(keys.wake_shard(key))
        await self._wire.write(("ZADD", index, "NX", self._time.now_ms(), str(key)))

    async def clear(self, key: records.SessionKey) -> None:
        """Remove the hint, then look: if the inbox holds something to wake for, put it back.

        It also looks before, so that a sweeper that dies in between takes no hint along that
        somebody needs: what arrives after the first look brings its own hint.
        """
        if await self._waits(key):
            return
        await self._wire.write(("ZREM", keys.wake(keys.wake_shard(key)), str(key)))
        if await self._waits(key):
            await self.ensure(key)

    async def hinted(self, shard: int, *, limit: int) -> list[records.SessionKey]:
        """Return up to `limit` hinted sessions of a shard, oldest first."""
        (names,) = await self._wire.read(("ZRANGE", keys.wake(shard), 0, limit - 1))
        return [records.SessionKey(*name.decode().split("/", 1)) for name in names]

    async def _waits(self, key: records.SessionKey) -> bool:
        length, (deleted, status) = await self._wire.read(
            ("LLEN", keys.inbox(key)), ("HMGET", keys.head(key), "d", "t")
        )
        return bool(length) and deleted is None and status != records.Status.PAUSED.value.encode()
