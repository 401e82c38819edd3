"""The wake index in Redis: one sorted set a shard."""

import random
from collections.abc import Callable

from torpor import clock
from torpor.storage import keys, records, redis_wire, scripts


class RedisWakeIndex:
    """`torpor.storage.store.WakeIndex` on Redis. A hint's score is when it was written, in ms."""

    def __init__(
        self,
        wire: redis_wire.Wire,
        time: clock.Clock,
        fraction: Callable[[], float] = random.random,
    ) -> None:
        self._wire = wire
        self._time = time
        #: Makes scores differ that were written in the same millisecond, or by clocks that differ.
        self._fraction = fraction

    async def ensure(self, key: records.SessionKey) -> None:
        """Write the hint; one that is there keeps its place, but for 2 ms at most."""
        index = _index(key)
        await self._wire.write(
            ("ZADD", index, "NX", self._time.now_ms(), str(key)),
            # Whoever is about to remove the hint sees that it was written once more.
            ("ZINCRBY", index, 1 + self._fraction(), str(key)),
        )

    async def clear(self, key: records.SessionKey) -> None:
        """Remove the hint unless the session has something to wake for.

        A writer hints after it has written, too: either the look at the session sees what was
        written, or the hint's score is no longer what it was before the look.
        """
        score, length = await self._wire.read(
            ("ZSCORE", _index(key), str(key)), ("LLEN", keys.inbox(key))
        )
        if score is not None and not length:
            await scripts.script("unhint").run(self._wire, (_index(key),), (str(key), score))

    async def postpone(self, key: records.SessionKey) -> None:
        """Move an existing hint to the end of its shard."""
        (last,) = await self._wire.read(("ZRANGE", _index(key), -1, -1, "WITHSCORES"))
        if last:
            # The clocks of gateways differ: the end is behind every hint that any of them wrote.
            score = max(self._time.now_ms(), float(last[1]) + 1 + self._fraction())
            await self._wire.write(("ZADD", _index(key), "XX", score, str(key)))

    async def hinted(self, shard: int, *, limit: int) -> list[records.SessionKey]:
        """Return up to `limit` hinted sessions of a shard, oldest first."""
        (names,) = await self._wire.read(("ZRANGE", keys.wake(shard), 0, limit - 1))
        return [records.SessionKey(*name.decode().split("/", 1)) for name in names]


def _index(key: records.SessionKey) -> str:
    return keys.wake(keys.wake_shard(key))
