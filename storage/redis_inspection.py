"""Looking at what lies in Redis as it lies there, and mending the indexes that follow from it.

Only checks come here. They need what `torpor.storage.store` keeps from everybody else: whether an
index agrees with what it was made from, and records that may not decode.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from torpor import errors
from torpor.storage import keys, records, redis_wire

#: Keys or entries that the server walks in one call: well below 1 ms, while others wait.
SCAN_COUNT = 500


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The records of one session as of one moment, undecoded."""

    #: `HGETALL`; empty when there is none.
    head: Sequence[bytes]
    #: What waits, oldest first.
    inbox: Sequence[bytes]
    #: Request ids that are known beside the hot tail.
    remembered: Sequence[bytes]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a scan of heads says of one session."""

    key: records.SessionKey
    #: Whether the index that listing reads has it.
    indexed: bool
    #: Whether it is there and not a tombstone.
    living: bool


class RedisInspection:
    """What a check needs of one server. Made from the wire of a `RedisStore`."""

    def __init__(self, wire: redis_wire.Wire) -> None:
        self._wire = wire

    async def server(self) -> str:
        """Return which process answers: a walk that another one goes on with is not complete."""
        (info,) = await self._wire.read(("INFO", "server"))
        lines = info.decode().splitlines()
        return next((line for line in lines if line.startswith("run_id:")), "")

    async def heads(self, tenant: str = "") -> AsyncIterator[list[Entry]]:
        """Yield pages of sessions that have a head, of one tenant or all; some come twice.

        What is there from the beginning to the end of the walk is in it.
        """
        pattern = keys.head(records.SessionKey(tenant or "*", "*"))
        cursor = b"0"
        while True:
            ((cursor, names),) = await self._wire.read(
                ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            )
            yield await self.entries([_key(name) for name in names])
            if cursor == b"0":
                return

    async def entries(self, found: Sequence[records.SessionKey]) -> list[Entry]:
        """Return what is there of these sessions."""
        if not found:
            return []
        # The index first: it is written before the head, and cleared after it.
        scores = await self._wire.read(
            *(("ZSCORE", keys.sessions(key.tenant), key.session) for key in found)
        )
        heads = await self._wire.read(*(("HMGET", keys.head(key), "d", "e") for key in found))
        return [
            Entry(key=key, indexed=score is not None, living=not deleted and bool(epoch))
            for key, score, (deleted, epoch) in zip(found, scores, heads, strict=True)
        ]

    async def index(self, tenant: str) -> AsyncIterator[list[records.SessionKey]]:
        """Yield pages of what a tenant's index lists; some come twice."""
        cursor = b"0"
        while True:
            ((cursor, flat),) = await self._wire.read(
                ("ZSCAN", keys.sessions(tenant), cursor, "COUNT", SCAN_COUNT)
            )
            yield [records.SessionKey(tenant, name.decode()) for name in flat[::2]]
            if cursor == b"0":
                return

    async def enter(self, key: records.SessionKey) -> bool:
        """Put a living session into the index; False if it is not living any more."""
        (created_ms,) = await self._wire.read(("HGET", keys.head(key), "cm"))
        score = created_ms if (created_ms or b"").isdigit() else 0
        await self._wire.write(("ZADD", keys.sessions(key.tenant), "NX", score, key.session))
        (after,) = await self.entries([key])
        if not after.living:
            await self._wire.write(("ZREM", keys.sessions(key.tenant), key.session))
        return after.living

    async def strike(self, key: records.SessionKey) -> bool:
        """Take a session without a living head out of the index; False if it has one after all."""
        await self._wire.write(("ZREM", keys.sessions(key.tenant), key.session))
        (after,) = await self.entries([key])
        return not (after.living and await self.enter(key))

    async def look(self, key: records.SessionKey) -> Look:
        """Return a session's records.

        Raises:
            Internal: one of them has another type.
            StoreUnavailable
        """
        replies = await self._wire.read(
            ("MULTI",),
            ("HGETALL", keys.head(key)),
            ("LRANGE", keys.inbox(key), 0, -1),
            ("HKEYS", keys.dedup(key)),
            ("EXEC",),
        )
        found: list[Any] = replies[-1]
        for reply in found:
            if isinstance(reply, Exception):
                raise errors.Internal(str(reply))
        head, inbox, remembered = found
        return Look(head=head, inbox=inbox, remembered=remembered)

    async def hinted(self, key: records.SessionKey) -> bool:
        """Whether the wake index has a hint for the session."""
        (score,) = await self._wire.read(("ZSCORE", keys.wake(keys.wake_shard(key)), str(key)))
        return score is not None


def _key(name: bytes) -> records.SessionKey:
    inside = name.decode(errors="replace").partition("{")[2].rpartition("}")[0]
    return records.SessionKey(*inside.split("/", 1))
