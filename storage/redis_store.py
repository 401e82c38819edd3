"""The store on Redis or Valkey."""

from collections.abc import Sequence

from torpor import clock, deployment
from torpor.storage import (
    redis_catalog,
    redis_durability,
    redis_feed,
    redis_inspection,
    redis_nodes,
    redis_sessions,
    redis_wake,
    redis_wire,
)


class RedisStore:
    """`torpor.storage.store.Store` on Redis. Made by `open`; used from one event loop."""

    def __init__(
        self, wire: redis_wire.Wire, durability: deployment.Durability, time: clock.Clock
    ) -> None:
        self._wire = wire
        self._durability = durability
        # In a process that never asks, the first write does: what it learns decides how to write.
        wire.before_writes = self.check_durability
        self.sessions = redis_sessions.RedisSessions(wire)
        self.wake = redis_wake.RedisWakeIndex(wire, time)
        self.nodes = redis_nodes.RedisNodes(wire)
        self.catalog = redis_catalog.RedisCatalog(wire)
        self.feed = redis_feed.RedisFeed(wire)
        #: For checks alone: it is no part of the protocol.
        self.inspection = redis_inspection.RedisInspection(wire)

    @property
    def connections_lost(self) -> int:
        """How many connections have ended: those after them may lead to another server."""
        return self._wire.connections_lost

    async def check_durability(self) -> Sequence[str]:
        """Return notes on what could not be determined; raise if the level is not reached."""
        server = await redis_durability.inspect(self._wire)
        verdict = redis_durability.judge(server, self._durability)
        self._wire.barrier = verdict.barrier
        self._wire.before_writes = None
        return verdict.notes

    async def close(self) -> None:
        """Close all connections."""
        await self.feed.close()
        await self._wire.close()


def open(  # noqa: A001 - called as redis_store.open
    settings: deployment.Deployment, *, time: clock.Clock | None = None, reads_wait: bool = True
) -> RedisStore:
    """Return the store of a deployment. Nothing is sent before the first call.

    Without `reads_wait` what is read may not be durable yet: for a session's owner, who wrote it
    and has waited, and for checks, which show it to nobody as done.
    """
    wire = redis_wire.Wire(settings.store_url)
    wire.reads_wait = reads_wait
    return RedisStore(wire, settings.durability, time or clock.SystemClock())
