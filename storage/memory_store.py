"""The store in memory, for unit tests: the same rules, nothing durable, one process."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from torpor import clock, errors
from torpor.storage import keys, memory_sessions, records

#: Nudges that wait for one subscriber; the oldest is dropped, since nudges are only nudges.
_QUEUE_MAX = 256


class MemoryStore:
    """`torpor.storage.store.Store` in memory. Leases expire by the clock that is given."""

    def __init__(self, time: clock.Clock | None = None) -> None:
        #: Never, unless a test says so.
        self.connections_lost = 0
        self.feed = MemoryFeed()
        self.sessions = memory_sessions.MemorySessions(self.feed.nudge)
        self.wake = MemoryWakeIndex(self.sessions)
        self.nodes = MemoryNodes(time or clock.SystemClock())
        self.catalog = MemoryCatalog()

    async def check_durability(self) -> Sequence[str]:
        """Say that nothing is durable."""
        return ("the store is in memory: nothing survives the process",)

    async def close(self) -> None:
        """There is nothing to close."""


class MemoryWakeIndex:
    """`torpor.storage.store.WakeIndex` in memory."""

    def __init__(self, sessions: memory_sessions.MemorySessions) -> None:
        self._sessions = sessions
        #: A dict, for its order.
        self._hints: dict[records.SessionKey, None] = {}

    async def ensure(self, key: records.SessionKey) -> None:
        """Write the hint unless it is there."""
        self._hints.setdefault(key)

    async def clear(self, key: records.SessionKey) -> None:
        """Remove the hint unless the session has something to wake for."""
        if not await self._sessions.inbox(key):
            self._hints.pop(key, None)

    async def postpone(self, key: records.SessionKey) -> None:
        """Move an existing hint to the end of its shard."""
        if key in self._hints:
            del self._hints[key]
            self._hints[key] = None

    async def hinted(self, shard: int, *, limit: int) -> list[records.SessionKey]:
        """Return up to `limit` hinted sessions of a shard, oldest first."""
        return [key for key in self._hints if keys.wake_shard(key) == shard][:limit]


class MemoryNodes:
    """`torpor.storage.store.Nodes` in memory."""

    def __init__(self, time: clock.Clock) -> None:
        self._time = time
        self._leases: dict[tuple[str, str], float] = {}
        self._records: dict[str, records.NodeRecord] = {}
        self._loads: dict[str, records.NodeLoad] = {}

    async def claim_lease(self, node: str, incarnation: str, *, ttl_ms: int) -> bool:
        """Create the lease of a new incarnation; False if it exists."""
        if await self.lease_stands(node, incarnation):
            return False
        self._leases[node, incarnation] = self._time.monotonic_s() + ttl_ms / 1_000
        return True

    async def renew_lease(self, node: str, incarnation: str, *, ttl_ms: int) -> bool:
        """Prolong a lease that still stands; False if it has lapsed. Never creates one."""
        if not await self.lease_stands(node, incarnation):
            return False
        self._leases[node, incarnation] = self._time.monotonic_s() + ttl_ms / 1_000
        return True

    async def drop_lease(self, node: str, incarnation: str) -> None:
        """End a lease at once."""
        self._leases.pop((node, incarnation), None)

    async def lease_stands(self, node: str, incarnation: str) -> bool:
        """Whether the incarnation is still in office."""
        return self._leases.get((node, incarnation), 0.0) > self._time.monotonic_s()

    async def announce(self, record: records.NodeRecord) -> None:
        """Write or replace the node's record."""
        self._records[record.node] = record

    async def withdraw(self, node: str) -> None:
        """Remove the node's record and load."""
        self._records.pop(node, None)
        self._loads.pop(node, None)

    async def publish_load(self, load: records.NodeLoad) -> None:
        """Replace the node's load."""
        self._loads[load.node] = load

    async def views(self) -> list[records.NodeView]:
        """Return all announced nodes with load and lease, in order of name."""
        return [
            await self._view(record)
            for record in sorted(self._records.values(), key=lambda found: (found.name, found.node))
        ]

    async def _view(self, record: records.NodeRecord) -> records.NodeView:
        load = self._loads.get(record.node)
        current = load if load is not None and load.incarnation == record.incarnation else None
        alive = await self.lease_stands(record.node, record.incarnation)
        return records.NodeView(record=record, load=current, alive=alive)


class MemoryCatalog:
    """`torpor.storage.store.Catalog` in memory."""

    def __init__(self) -> None:
        self._tenants: set[str] = set()
        self._storage = ""
        self._keys: dict[str, records.ApiKey] = {}
        self._versions: dict[tuple[str, str], list[records.AgentVersion]] = {}

    async def create_tenant(self, tenant: str, *, at_ms: int) -> None:
        """Make a tenant known. Idempotent."""
        self._tenants.add(tenant)

    async def tenants(self) -> list[str]:
        """Return all tenants by name."""
        return sorted(self._tenants)

    async def tenant_exists(self, tenant: str) -> bool:
        """Whether the tenant is known."""
        return tenant in self._tenants

    async def storage(self, proposed: str = "") -> str:
        """Return the id of the shared storage; `proposed` becomes it if none is known."""
        self._storage = self._storage or proposed
        return self._storage

    async def put_key(self, key_digest: str, key: records.ApiKey) -> None:
        """Store what an API key stands for under the SHA-256 of the key."""
        if key.tenant not in self._tenants:
            raise errors.TenantNotFound(tenant=key.tenant)
        self._keys[key_digest] = key

    async def api_key(self, key_digest: str) -> records.ApiKey | None:
        """Return what the key stands for."""
        return self._keys.get(key_digest)

    async def revoke_key(self, key_digest: str) -> bool:
        """Forget a key; False if it was unknown."""
        return self._keys.pop(key_digest, None) is not None

    async def register(self, tenant: str, version: records.AgentVersion) -> records.AgentVersion:
        """Add a version after the newest one; the newest one itself if the digest is equal."""
        known = self._versions.setdefault((tenant, version.name), [])
        if not known or known[-1].digest != version.digest:
            known.append(msgspec.structs.replace(version, version=len(known) + 1))
        return known[-1]

    async def agent(self, tenant: str, name: str, version: int = 0) -> records.AgentVersion:
        """Return one version, the newest for 0."""
        known = self._versions.get((tenant, name), [])
        if not known or not 0 <= version <= len(known):
            raise errors.AgentNotFound(tenant=tenant, agent=name, version=version)
        return known[version - 1]

    async def agents(self, tenant: str) -> list[records.AgentVersion]:
        """Return the newest version of each agent, by name."""
        return [
            known[-1] for (owner, _), known in sorted(self._versions.items()) if owner == tenant
        ]


class MemoryFeed:
    """`torpor.storage.store.Feed` in memory."""

    def __init__(self) -> None:
        self._queues: dict[records.SessionKey, list[asyncio.Queue[bytes]]] = {}

    async def publish_delta(self, key: records.SessionKey, delta: bytes) -> None:
        """Send a provisional piece to whoever watches now."""
        self.nudge(key, b"d" + delta)

    def nudge(self, key: records.SessionKey, nudge: bytes) -> None:
        """Hand a nudge to every subscriber."""
        for queue in self._queues.get(key, []):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(nudge)

    async def subscribe(self, key: records.SessionKey) -> AsyncIterator[bytes]:
        """Yield `b"c"` once at the start and after each commit, and `b"d" + delta`."""
        queue = asyncio.Queue[bytes](_QUEUE_MAX)
        queues = self._queues.setdefault(key, [])
        queues.append(queue)
        try:
            yield b"c"
            while True:
                yield await queue.get()
        finally:
            queues.remove(queue)
