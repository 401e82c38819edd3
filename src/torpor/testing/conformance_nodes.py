"""Conformance: leases, announcements and loads of nodes."""
# ruff: noqa: S101 - these are tests

from torpor import ids
from torpor.storage import records, store
from torpor.testing import eventually

#: Longer than any test: what lapses in a test is dropped, or has `SHORT_MS`.
LONG_MS = 600_000
SHORT_MS = 30


class Nodes:
    """A lease decides who is in office; a lapsed one never comes back."""

    async def test_lease_is_claimed_once(self, store: store.Store) -> None:
        """One claim makes a lease, a second one of the same incarnation does not."""
        node = ids.random_id("node")
        assert await store.nodes.claim_lease(node, "inc-1", ttl_ms=LONG_MS)
        assert not await store.nodes.claim_lease(node, "inc-1", ttl_ms=LONG_MS)
        assert await store.nodes.lease_stands(node, "inc-1")
        assert not await store.nodes.lease_stands(node, "inc-2")

    async def test_renewing_never_creates(self, store: store.Store) -> None:
        """Only a lease that stands can be prolonged."""
        node = ids.random_id("node")
        assert not await store.nodes.renew_lease(node, "inc-1", ttl_ms=LONG_MS)
        assert not await store.nodes.lease_stands(node, "inc-1")
        await store.nodes.claim_lease(node, "inc-1", ttl_ms=LONG_MS)
        assert await store.nodes.renew_lease(node, "inc-1", ttl_ms=LONG_MS)
        await store.nodes.drop_lease(node, "inc-1")
        assert not await store.nodes.renew_lease(node, "inc-1", ttl_ms=LONG_MS)
        assert not await store.nodes.lease_stands(node, "inc-1")

    async def test_lease_lapses(self, store: store.Store) -> None:
        """A lease that nobody renews ends by itself, and renewing moves that moment."""
        node = ids.random_id("node")
        await store.nodes.claim_lease(node, "kept", ttl_ms=SHORT_MS)
        await store.nodes.renew_lease(node, "kept", ttl_ms=LONG_MS)
        await store.nodes.claim_lease(node, "lapsing", ttl_ms=SHORT_MS)

        async def lapsed() -> bool:
            return not await store.nodes.lease_stands(node, "lapsing")

        await eventually.assert_eventually(lapsed)
        assert await store.nodes.lease_stands(node, "kept")
        assert not await store.nodes.renew_lease(node, "lapsing", ttl_ms=LONG_MS)

    async def test_views_join_record_load_and_lease(self, store: store.Store) -> None:
        """A view has the node's record, its own incarnation's load, and whether it is alive."""
        node = ids.random_id("node")
        await store.nodes.announce(_record(node, "inc-1"))
        assert await _view(store, node) == records.NodeView(
            record=_record(node, "inc-1"), load=None, alive=False
        )
        await store.nodes.claim_lease(node, "inc-1", ttl_ms=LONG_MS)
        await store.nodes.publish_load(_load(node, "inc-1"))
        assert await _view(store, node) == records.NodeView(
            record=_record(node, "inc-1"), load=_load(node, "inc-1"), alive=True
        )
        await store.nodes.announce(_record(node, "inc-2"))
        assert await _view(store, node) == records.NodeView(
            record=_record(node, "inc-2"), load=None, alive=False
        )
        await store.nodes.withdraw(node)
        assert await _view(store, node) is None

    async def test_views_are_in_order_of_name(self, store: store.Store) -> None:
        """Nodes are listed by their name."""
        nodes = [ids.random_id(prefix) for prefix in ("c", "a", "b")]
        for node in nodes:
            await store.nodes.announce(_record(node, "inc-1"))
        found = [view.record.node for view in await store.nodes.views()]
        assert [node for node in found if node in nodes] == sorted(nodes)
        for node in nodes:
            await store.nodes.withdraw(node)


async def _view(store: store.Store, node: str) -> records.NodeView | None:
    found = [view for view in await store.nodes.views() if view.record.node == node]
    return found[0] if found else None


def _record(node: str, incarnation: str) -> records.NodeRecord:
    return records.NodeRecord(
        node=node,
        name=node,
        incarnation=incarnation,
        agent_actor=f"agent-{node}",
        gateway="127.0.0.1:7420",
        sessions_max=10,
        cpus=2.0,
        memory_bytes=4 << 30,
        started_ms=1,
    )


def _load(node: str, incarnation: str) -> records.NodeLoad:
    return records.NodeLoad(
        node=node,
        incarnation=incarnation,
        beat=7,
        sessions=3,
        activating=1,
        sessions_max=10,
        cpu=0.5,
        memory=0.25,
        draining=False,
    )
