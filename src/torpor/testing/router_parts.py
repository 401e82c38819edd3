"""The parts of a gateway below its services, over a cluster in this process and a clock at rest."""

import random

from torpor import definition, messages
from torpor.actors import protocol
from torpor.router import (
    activator,
    cluster_view,
    control,
    deadline,
    directory,
    routing,
    wake_sweeper,
    waking,
)
from torpor.storage import memory_store, records
from torpor.testing import clock, in_process_cluster

KEY = records.SessionKey("acme", "s1")


class RouterParts:
    """One gateway's parts; several may share a store, a cluster and a clock."""

    def __init__(
        self,
        store: memory_store.MemoryStore,
        cluster: in_process_cluster.InProcessCluster,
        time: clock.FakeClock,
    ) -> None:
        rng = random.Random(1)  # noqa: S311 - a test that fails should fail again
        self.store = store
        self.cluster = cluster
        self.clock = time
        self.view = cluster_view.ClusterView(store.nodes, time)
        self.directory = directory.Directory()
        self.activator = activator.Activator(store, cluster, self.view, self.directory, time, rng)
        self.router = routing.Router(
            store.sessions, cluster, self.activator, self.directory, self.view.office
        )
        self.waker = waking.Waker(store, self.router, time)
        self.control = control.Control(
            store,
            cluster,
            self.activator,
            self.directory,
            self.view.office,
            self.waker,
            time,
        )
        self.sweeper = wake_sweeper.WakeSweeper(store, self.waker, time, rng)

    def until(self, seconds: float = 60.0) -> deadline.Deadline:
        """Return a deadline on the clock at rest."""
        return deadline.Deadline.after(self.clock, seconds)

    async def say(
        self,
        text: str,
        request_id: str,
        *,
        busy: protocol.BusyPolicy = protocol.BusyPolicy.ENQUEUE,
        **fields: int,
    ) -> protocol.Delivered:
        """Send a message to the session `KEY`; `fields` are `min_version` and `seconds`."""
        return await self.router.deliver(
            KEY,
            message(text, request_id),
            body_digest=text,
            busy=busy,
            min_version=fields.get("min_version", 0),
            until=self.until(fields.get("seconds", 60)),
        )

    async def head(self) -> records.Head:
        """Return the head of the session `KEY`."""
        return await self.store.sessions.head(KEY)

    async def close(self) -> None:
        """End everything in the background."""
        await self.waker.close()
        await self.control.close()
        await self.activator.close()


def message(text: str, request_id: str) -> messages.Message:
    """Return a message from a user."""
    return messages.Message(text=text, request_id=request_id)


async def build(*, nodes: int = 3) -> RouterParts:
    """Return the parts of a gateway of `nodes` nodes, with the sleeping session `KEY`."""
    time = clock.FakeClock()
    store = memory_store.MemoryStore(time)
    cluster = in_process_cluster.InProcessCluster(store, nodes=nodes)
    await cluster.start()
    await store.catalog.register(
        KEY.tenant,
        records.AgentVersion(
            name="echo",
            version=0,
            import_path="examples:Echo",
            digest="d",
            settings=definition.AgentSettings(),
            created_ms=0,
        ),
    )
    await store.sessions.create(
        records.NewSession(
            key=KEY, agent="echo", agent_version=1, request_id="create", created_ms=0
        )
    )
    parts = RouterParts(store, cluster, time)
    await parts.view.refresh()
    return parts


async def second(parts: RouterParts) -> RouterParts:
    """Return another gateway's parts over the same store, cluster and clock."""
    other = RouterParts(parts.store, parts.cluster, parts.clock)
    await other.view.refresh()
    return other
