"""Nodes in Redis: leases that expire, and two hashes.

Leases and loads do not wait for the disk: a lease that a restart of Redis forgets only makes its
node come back as a new incarnation.
"""

import msgspec

from torpor.storage import keys, record_codec, records, redis_wire

_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(records.NodeRecord).decode
_decode_load = msgspec.msgpack.Decoder(records.NodeLoad).decode


class RedisNodes:
    """`torpor.storage.store.Nodes` on Redis."""

    def __init__(self, wire: redis_wire.Wire) -> None:
        self._wire = wire

    async def claim_lease(self, node: str, incarnation: str, *, ttl_ms: int) -> bool:
        """Create the lease of a new incarnation; False if it exists."""
        (made,) = await self._wire.read(
            ("SET", keys.lease(node, incarnation), "1", "PX", ttl_ms, "NX")
        )
        return made is not None

    async def renew_lease(self, node: str, incarnation: str, *, ttl_ms: int) -> bool:
        """Prolong a lease that still stands; False if it has lapsed. Never creates one."""
        (stands,) = await self._wire.read(
            ("SET", keys.lease(node, incarnation), "1", "PX", ttl_ms, "XX")
        )
        return stands is not None

    async def drop_lease(self, node: str, incarnation: str) -> None:
        """End a lease at once."""
        await self._wire.write(("DEL", keys.lease(node, incarnation)))

    async def lease_stands(self, node: str, incarnation: str) -> bool:
        """Whether the incarnation is still in office."""
        (count,) = await self._wire.read(("EXISTS", keys.lease(node, incarnation)))
        return bool(count)

    async def announce(self, record: records.NodeRecord) -> None:
        """Write or replace the node's record."""
        await self._wire.write(("HSET", keys.NODES, record.node, _encode(record)))

    async def withdraw(self, node: str) -> None:
        """Remove the node's record and load."""
        await self._wire.write(("HDEL", keys.NODES, node), ("HDEL", keys.LOADS, node))

    async def publish_load(self, load: records.NodeLoad) -> None:
        """Replace the node's load."""
        await self._wire.read(("HSET", keys.LOADS, load.node, _encode(load)))

    async def views(self) -> list[records.NodeView]:
        """Return all announced nodes with load and lease, in order of name."""
        announced, published = await self._wire.read(
            ("HGETALL", keys.NODES), ("HGETALL", keys.LOADS)
        )
        found = [_decode_record(value) for value in announced[1::2]]
        if not found:
            return []
        leases = await self._wire.read(
            *(("EXISTS", keys.lease(record.node, record.incarnation)) for record in found)
        )
        loads = {
            node.decode(): _decode_load(value)
            for node, value in record_codec.pairs(published).items()
        }
        views = [
            records.NodeView(
                record=record, load=_current(loads.get(record.node), record), alive=bool(stands)
            )
            for record, stands in zip(found, leases, strict=True)
        ]
        return sorted(views, key=lambda view: (view.record.name, view.record.node))


def _current(load: records.NodeLoad | None, record: records.NodeRecord) -> records.NodeLoad | None:
    """Return the load unless an earlier incarnation published it."""
    return load if load is not None and load.incarnation == record.incarnation else None
