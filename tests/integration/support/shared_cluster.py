"""What integration tests do with the deployment they share."""

import pathlib

import ray

import torpor
from torpor import client, control_plane, ids, messages
from torpor.actors import protocol
from torpor.dev import local
from torpor.storage import records, redis_store
from torpor.testing.eventually import assert_eventually

#: A tenant besides the one that a local deployment makes.
OTHER_TENANT = "other"
#: A node is up, or a session back from a lost node, well within this on a slow machine.
SLOW_S = 60.0


class Gate:
    """Holds turns in the middle: agents wait at it, the test opens it."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        #: Put into a message's code.
        self.code = f"await hold({str(path)!r})"

    def pids(self) -> list[int]:
        """Return the processes that came here so far, one for each time that a turn ran."""
        return [int(line) for line in self._path.read_text().split()] if self._path.exists() else []

    async def reached(self, times: int = 1) -> int:
        """Wait until a turn has come here for the `times`th time; returns its process's id."""

        async def enough() -> bool:
            return len(self.pids()) >= times

        await assert_eventually(enough, SLOW_S)
        return self.pids()[times - 1]

    def open(self) -> None:
        """Let all that wait here, and all that come, go on."""
        pathlib.Path(f"{self._path}.open").touch()


class Cluster:
    """The shared deployment, its clients and its store, from the inside and the outside."""

    def __init__(self, here: local.LocalDeployment, clients: list[client.Client]) -> None:
        self.here = here
        #: One client a gateway, in order of the nodes' names.
        self.clients = clients
        self.client = clients[0]
        #: The gateways of the nodes that stay, in the same order.
        self.addresses = tuple(here.gateways)
        self.store = redis_store.open(here.deployment)

    def key(self, session: client.Session, tenant: str = local.TENANT) -> records.SessionKey:
        """Return the session's key in the store."""
        return records.SessionKey(tenant, session.id)

    async def head(self, session: client.Session) -> records.Head:
        """Return the session's head."""
        return await self.store.sessions.head(self.key(session))

    def node_name(self, node: str) -> str:
        """Return the name of a node that runs."""
        return self.here.control.running[node].name

    async def home(self, session: client.Session) -> str:
        """Return the name of the node that holds the session; empty when none does."""
        owner = (await self.head(session)).owner
        return "" if owner is None else self.node_name(owner.node)

    async def add_node(self) -> str:
        """Bring one more node into service; returns its name."""
        name = ids.random_id("extra")
        before = set(self.here.control.running)
        self.here.cluster.add(name)

        async def in_service() -> bool:
            await self.here.control.reconcile()
            return bool(set(self.here.control.running) - before)

        await assert_eventually(in_service, SLOW_S)
        (node,) = set(self.here.control.running) - before

        async def reports() -> bool:
            views = await self.store.nodes.views()
            return any(view.record.node == node and view.load is not None for view in views)

        await assert_eventually(reports)
        return name

    async def lose(self, name: str) -> None:
        """End a node that `add_node` made, and wait until nobody lists it any more."""
        self.here.cluster.kill_node(name)
        await self.forgotten(name)

    async def forgotten(self, name: str) -> None:
        """Reconcile until a lost node is not listed any more."""

        async def unlisted() -> bool:
            await self.here.control.reconcile()
            return name not in [view.record.name for view in await self.store.nodes.views()]

        await assert_eventually(unlisted, SLOW_S)

    def running(self, name: str) -> control_plane.Running:
        """Return what runs on the node of that name."""
        return next(each for each in self.here.control.running.values() if each.name == name)

    def node_id(self, name: str) -> str:
        """Return Ray's id of a node that runs."""
        return self.running(name).node

    async def take_to(self, session: client.Session, name: str) -> None:
        """Wake an evicted session on the node of that name, as a gateway that chose it would."""
        node = self.node_id(name)
        head = await self.head(session)
        assert head.owner is None, "evict it first"
        agent = await self.store.catalog.agent(head.key.tenant, head.agent, head.agent_version)
        request = protocol.Activate(
            key=head.key,
            observed_epoch=head.epoch,
            observed_incarnation="",
            agent=agent,
            deadline_s=SLOW_S,
        )
        protocol.accept(await self.node_agent(name).activate.remote(request))

        async def owned() -> bool:
            owner = (await self.head(session)).owner
            return owner is not None and owner.node == node

        await assert_eventually(owned, SLOW_S)

    def node_agent(self, name: str) -> ray.actor.ActorHandle:
        """Return the Ray actor of a node's agent."""
        return self.running(name).agent_actor

    def gateway_actor(self, name: str) -> ray.actor.ActorHandle:
        """Return the Ray actor of a node's gateway."""
        return self.running(name).gateway_actor

    async def settled(self) -> None:
        """Reconcile until every node has a gateway and an agent that answer."""

        async def all_run() -> bool:
            await self.here.control.reconcile()
            return len(self.here.control.running) == len(
                [node for node in ray.nodes() if node["Alive"]]
            )

        await assert_eventually(all_run, SLOW_S)


async def events(session: client.Session, *types: str) -> list[messages.Event]:
    """Return a session's events, of `types` if given."""
    return [event async for event in session.events(types=types)]


def texts(happened: list[messages.Event]) -> list[str]:
    """Return the texts of messages."""
    return [event.data["text"] for event in happened]


def connect(address: str, api_key: str | None, **how: object) -> client.Client:
    """Return the context manager of a client."""
    return torpor.connect(address, api_key=api_key, **how)
