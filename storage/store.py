"""The store as a protocol: what Redis must do for torpor, and nothing about how.

Two implementations pass the same conformance suite (`torpor.testing.conformance`): Redis, and one
in memory for unit tests. Every write here is durable at the deployment's level when the call
returns.

All methods may raise `StoreUnavailable` (nothing is known to have happened, reads and idempotent
writes may be repeated) and, for writes, `StoreReadOnly` (definitely nothing happened). `commit`
raises `OutcomeUnknown` instead of `StoreUnavailable` once the script may have been sent.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from torpor.storage import records


class Sessions(Protocol):
    """The records of sessions, each in one hash slot."""

    async def create(self, new: records.NewSession) -> records.Head:
        """Write the head of a new session, with the event `session.created`, and index it.

        The same `request_id` again returns the head that is there.

        Raises:
            SessionExists: the id is taken by another request.
            SessionDeleted: the id was used and deleted.
        """
        ...

    async def head(self, key: records.SessionKey) -> records.Head:
        """Return the head.

        Raises:
            SessionNotFound: there is none.
            SessionDeleted: only its tombstone is left.
        """
        ...

    async def page(self, tenant: str, *, after: str, limit: int) -> tuple[list[records.Head], str]:
        """Return up to `limit` heads of a tenant in order of creation, and the next `after`.

        `after` is opaque, empty for the first page; the returned one is empty at the end, and only
        there: a page may be short, or empty, and others follow.

        Raises:
            InvalidField: `after` was not returned by this method.
        """
        ...

    async def flush(self) -> None:
        """Return once all that the store has now is durable.

        Raises:
            StoreUnavailable
        """
        ...

    async def acquire(self, claim: records.Acquire, *, durable: bool = True) -> records.Acquired:
        """Take ownership: epoch + 1 with the claim's nonce, if the head is as observed.

        Unless `durable`, it may be lost again, and what it finds, too, until a commit has waited
        for the disk, or a `flush` after which the claim still stands.

        Raises:
            Fenced: the head has another epoch or owner than observed.
            SessionNotFound, SessionDeleted
        """
        ...

    async def commit(self, commit: records.Commit) -> records.Committed:
        """Make a turn true, all of it or nothing.

        Checked in this order, before the first write: exists, epoch and nonce, commit id, version,
        seqs, consumed items, bounds, restore point.

        Raises:
            Fenced: epoch or nonce differs; the caller must stop.
            VersionConflict: the version differs, or there is no restore point to go back to.
            SessionDeleted, SessionNotFound
            DedupFull: `DEDUP_HOT_MAX` would be passed.
            ResourceExhausted: there are more than `TURN_EVENTS_MAX` events.
            OutcomeUnknown: the answer was lost; acquire again, then compare `head.commit_id`.
        """
        ...

    async def release(
        self, key: records.SessionKey, *, epoch: int, nonce: str, expected_version: int
    ) -> bool:
        """Give up ownership, unless the inbox holds something and the session is not paused.

        Then False, and nothing changed.

        Raises:
            Fenced: the caller no longer owns it.
            VersionConflict: the version differs: the store went back to an earlier state.
            SessionDeleted, SessionNotFound
        """
        ...

    async def restore_points(self, key: records.SessionKey) -> list[records.RestorePoint]:
        """Return the versions that a wake can go back to, newest first, as of one moment.

        At most `RESTORE_POINTS_MAX`. The first is what the head names now, also before the first
        turn; each of the others is the last version before state or files changed.

        Raises:
            SessionDeleted, SessionNotFound
        """
        ...

    async def vacate(
        self,
        key: records.SessionKey,
        *,
        epoch: int,
        incarnation: str,
        nonce: str = "",
        died: bool = True,
    ) -> bool:
        """Clear an owner whose process is proven dead or whose node's lease is gone.

        False, and nothing changed, if it is not the owner. A nonce tells it from another owner of
        the same epoch, which there is once the store went back. An owner that gives itself up says
        `died=False`: its claim was fruitless by no message's fault and is not counted.

        Raises:
            SessionDeleted, SessionNotFound
        """
        ...

    async def seal(self, seal: records.Seal) -> None:
        """Trim the hot tail below `new_hot_from` and name the new cold index, in one step.

        Raises:
            Fenced: epoch or nonce differs.
            VersionConflict: hot begins before the observed `hot_from`, or after `new_hot_from`.
            SessionDeleted, SessionNotFound
        """
        ...

    async def hot(self, key: records.SessionKey, *, after: int, limit: int) -> records.HotPage:
        """Return hot events with seq > `after`, and where hot begins, as of one moment."""
        ...

    async def enqueue(self, key: records.SessionKey, item: records.InboxItem) -> records.Enqueued:
        """Append to the inbox once per request id.

        Raises:
            InboxFull: `INBOX_MAX` items wait.
            DedupFull: `DEDUP_HOT_MAX` requests are remembered beside the hot tail.
            RequestIdReused: the id is known with another body digest.
            SessionDeleted, SessionNotFound
        """
        ...

    async def inbox(self, key: records.SessionKey) -> list[records.InboxItem]:
        """Return what waits, oldest first."""
        ...

    async def outcome(self, key: records.SessionKey, request_id: str) -> records.Outcome | None:
        """Return what is known of a request id beside the hot tail."""
        ...

    async def delete(self, key: records.SessionKey) -> None:
        """Leave a tombstone with a higher epoch, so that no owner can write again. Idempotent.

        Raises:
            SessionNotFound: it never existed.
        """
        ...


class WakeIndex(Protocol):
    """Hints that a session has something to wake for. Late or needless, never lost.

    Writers hint (`ensure`), append, hint again, and only then acknowledge: a writer that dies
    leaves a hint, and an overlapping `clear` either sees what was appended or leaves the hint.
    """

    async def ensure(self, key: records.SessionKey) -> None:
        """Write the hint unless it is there."""
        ...

    async def clear(self, key: records.SessionKey) -> None:
        """Remove the hint unless there is something to wake for, or a writer has hinted meanwhile.

        There is while the inbox holds something, also that of a paused session.
        """
        ...

    async def postpone(self, key: records.SessionKey) -> None:
        """Move an existing hint to the end of its shard; without a hint nothing happens.

        So sessions that cannot be woken now do not keep others waiting.
        """
        ...

    async def hinted(self, shard: int, *, limit: int) -> list[records.SessionKey]:
        """Return up to `limit` hinted sessions of a shard below `WAKE_SHARDS`, oldest first."""
        ...


class Nodes(Protocol):
    """Leases, announcements and loads of nodes."""

    async def claim_lease(self, node: str, incarnation: str, *, ttl_ms: int) -> bool:
        """Create the lease of a new incarnation; False if it exists."""
        ...

    async def renew_lease(self, node: str, incarnation: str, *, ttl_ms: int) -> bool:
        """Prolong a lease that still stands; False if it has lapsed. Never creates one."""
        ...

    async def drop_lease(self, node: str, incarnation: str) -> None:
        """End a lease at once."""
        ...

    async def lease_stands(self, node: str, incarnation: str) -> bool:
        """Whether the incarnation is still in office."""
        ...

    async def announce(self, record: records.NodeRecord) -> None:
        """Write or replace the node's record."""
        ...

    async def withdraw(self, node: str) -> None:
        """Remove the node's record and load."""
        ...

    async def publish_load(self, load: records.NodeLoad) -> None:
        """Replace the node's load (not durable: a load is old news in a second)."""
        ...

    async def views(self) -> list[records.NodeView]:
        """Return all announced nodes with load and lease, in order of name."""
        ...


class Catalog(Protocol):
    """Tenants, API keys and agent versions."""

    async def create_tenant(self, tenant: str, *, at_ms: int) -> None:
        """Make a tenant known. Idempotent."""
        ...

    async def tenants(self) -> list[str]:
        """Return all tenants by name."""
        ...

    async def tenant_exists(self, tenant: str) -> bool:
        """Whether the tenant is known."""
        ...

    async def storage(self, proposed: str = "") -> str:
        """Return the id of the deployment's shared storage; `proposed` becomes it if none is known.

        Empty when none is known and none proposed.
        """
        ...

    async def put_key(self, key_digest: str, key: records.ApiKey) -> None:
        """Store what an API key stands for under the SHA-256 of the key.

        Raises:
            TenantNotFound: the key names an unknown tenant.
        """
        ...

    async def api_key(self, key_digest: str) -> records.ApiKey | None:
        """Return what the key stands for."""
        ...

    async def revoke_key(self, key_digest: str) -> bool:
        """Forget a key; False if it was unknown."""
        ...

    async def register(self, tenant: str, version: records.AgentVersion) -> records.AgentVersion:
        """Add a version, numbered after the newest one, unless that has the same digest.

        Returns the version that is the newest then. The number in `version.version` is ignored.
        Atomic: two registrations get two numbers.
        """
        ...

    async def agent(self, tenant: str, name: str, version: int = 0) -> records.AgentVersion:
        """Return one version, the newest for 0.

        Raises:
            AgentNotFound
        """
        ...

    async def agents(self, tenant: str) -> list[records.AgentVersion]:
        """Return the newest version of each agent, by name."""
        ...


class Feed(Protocol):
    """Nudges to watchers: a commit took place, or a provisional delta passed. Not durable."""

    async def publish_delta(self, key: records.SessionKey, delta: bytes) -> None:
        """Send a provisional piece to whoever watches now."""
        ...

    def subscribe(self, key: records.SessionKey) -> AsyncIterator[bytes]:
        """Yield `b"c"` at the start and after each commit, and `b"d" + delta`.

        The first comes when the subscription is confirmed: what is committed later is nudged, but
        some nudges may be folded or lost, so poll too. Closing the iterator (`aclose`)
        unsubscribes.
        """
        ...


class Store(Protocol):
    """One connection pool to one store, in its parts."""

    @property
    def sessions(self) -> Sessions:
        """The records of sessions."""
        ...

    @property
    def wake(self) -> WakeIndex:
        """Hints of what to wake for."""
        ...

    @property
    def nodes(self) -> Nodes:
        """Leases, announcements and loads."""
        ...

    @property
    def catalog(self) -> Catalog:
        """Tenants, keys, agents."""
        ...

    @property
    def feed(self) -> Feed:
        """Nudges to watchers."""
        ...

    @property
    def connections_lost(self) -> int:
        """How many connections have ended: those after them may lead to another server."""
        ...

    async def check_durability(self) -> Sequence[str]:
        """Return notes on what could not be determined; raise if the level is not reached.

        Raises:
            StoreBelowDurability: with the setting and the remedy in the message.
            StoreUnavailable
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
