"""A whole deployment on one machine, each node in a network of its own, to break things in."""

import asyncio
import contextlib
import hashlib
import os
import pathlib
import signal
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import yaml

import control_plane
import damage
import ground
import machine
import network
import residents
import stores
import torpor
import wall_clock
from torpor import deployment, errors, ids, probes
from torpor.actors import ray_compat
from torpor.storage import keyring, records, redis_store
from torpor.testing import eventually

TENANTS = ("red", "blue")
HEAD = "head"
LEASE_TTL_MS = 3_000
#: The nodes share one machine's cores, and an activation takes most of a core.
ACTIVATIONS_MAX = 1
#: Small enough to be filled in some seconds.
STORAGE_BYTES = 2 << 30
#: The disk grows before less is free: nothing stored is taken away, and one fault fills it.
ROOM_BYTES = 512 << 20
#: A world is up within this on a slow machine; most of it is Python importing.
UP_TIMEOUT_S = 240.0
#: A node comes back into service within this.
NODE_TIMEOUT_S = 120.0
_POLL_S = 0.25
_CONNECT_TIMEOUT_S = 1.0
_REGISTER_TIMEOUT_S = 60.0

M = TypeVar("M", bound=machine.Machine)


class Node(machine.Machine):
    """A machine that hosts sessions."""

    @property
    def gateway(self) -> str:
        """The address of its gateway, `host:port`; the same in each of its lives."""
        return f"{self.address}:{machine.GATEWAY_PORT}"


class World:
    """An async context manager: stores, Ray's head, nodes, `torpor serve`, tenants, an agent."""

    def __init__(
        self,
        *,
        nodes: int = 3,
        durability: deployment.Durability = deployment.Durability.FSYNC,
        agent: str = "torpor.testing.witness:Witness",
        logs: pathlib.Path | None = None,
    ) -> None:
        """Describe a world; nothing is started.

        Args:
            nodes: how many, besides the head.
            durability: of the deployment.
            agent: what is registered for every tenant.
            logs: a folder that gets all logs when the world ends.
        """
        self._names = [f"node-{number}" for number in range(1, nodes + 1)]
        self._durability = durability
        self._agent = agent
        self._logs = logs
        self._exits = contextlib.AsyncExitStack()
        self._gcs: machine.Command | None = None
        #: Lives of node agents that are over, though their leases may still stand.
        self._over: set[str] = set()
        self.lease_ttl_ms = LEASE_TTL_MS
        self.nodes: dict[str, Node] = {}
        #: The wall clocks of the nodes, which go right until somebody lets them jump.
        self.clocks: dict[str, wall_clock.WallClock] = {}
        self.api_keys: dict[str, str] = {}
        self.operator_key = ids.api_key()
        #: How many gateways get each append of the load at once.
        self.duplicate = 1
        #: What faults damaged in shared storage, in their order.
        self.damaged: list[damage.Damaged] = []
        #: Calls all sessions at once; set by whoever has sessions.
        self.call_everybody: Callable[[], Awaitable[None]] | None = None
        self.network: network.Network
        self.stores: stores.Stores
        self.storage: pathlib.Path
        self.place: deployment.Deployment
        self.probes: probes.Probes
        self.head: machine.Machine
        self.control: control_plane.ControlPlane
        #: Directly, past the proxy.
        self.store: redis_store.RedisStore
        self._residents: residents.Residents

    async def __aenter__(self) -> Self:
        """Start everything, and wait until all nodes are in service.

        Raises:
            network.Impossible: this machine allows no namespaces.
            TimeoutError: it did not come up.
        """
        network.require_possible()
        network.remove_left_overs()
        ground.remove_left_overs()
        try:
            async with asyncio.timeout(UP_TIMEOUT_S):
                await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill and remove everything."""
        await self._exits.aclose()

    # --- coming up --------------------------------------------------------------------------------

    async def _start(self) -> None:
        enter = self._exits.enter_context
        folder = enter(ground.folder())
        if self._logs is not None:
            self._exits.callback(ground.keep_logs, folder, self._logs)
        self.storage = enter(ground.disk(folder / "shared", STORAGE_BYTES))
        self.probes = probes.Probes(folder / "probes")
        self.network = enter(network.Network())
        self.stores = await self._exits.enter_async_context(
            stores.Stores(
                folder / "stores",
                host=self.network.store_address,
                ray_host=self.network.ray_store_address,
                durability=self._durability,
            )
        )
        place = self.place = self._describe(folder)
        self.store = redis_store.open(place)
        self._exits.push_async_callback(self.store.close)
        await self._introduce_tenants()
        self.head = self._add_machine(machine.Machine, HEAD, folder)
        self.nodes = {name: self._add_machine(Node, name, folder) for name in self._names}
        self._residents = residents.Residents(self.probes.folder, self.nodes)
        await self.head.start_head(self.stores.ray_address)
        await asyncio.gather(*(self._start_ray(node) for node in self.nodes.values()))
        self.control = await self._exits.enter_async_context(
            control_plane.ControlPlane(self.head, _write_settings(place, self.stores.url, folder))
        )
        await self.settled(UP_TIMEOUT_S)
        for tenant in TENANTS:
            await self._register(tenant)

    def _describe(self, folder: pathlib.Path) -> deployment.Deployment:
        keyring.create(folder / "signing-keys")
        return deployment.Deployment(
            store_url=self.stores.direct_url,
            durability=self._durability,
            storage=self.storage,
            scratch=folder / "scratch",
            signing_key_file=folder / "signing-keys",
            gateway_host="0.0.0.0",  # noqa: S104 — in a namespace
            gateway_port=machine.GATEWAY_PORT,
            load_scope=deployment.LoadScope.NODE,
            activations_per_node_max=ACTIVATIONS_MAX,
            lease_ttl_ms=self.lease_ttl_ms,
        )

    def _add_machine(self, kind: type[M], name: str, folder: pathlib.Path) -> M:
        namespace, address = self.network.add(name)
        clock = wall_clock.WallClock(folder / f"{name}.clock")
        if kind is Node:
            self.clocks[name] = clock
        return kind(
            name,
            namespace=namespace,
            address=address,
            folder=folder / name,
            environment={probes.VARIABLE: str(self.probes.folder), **clock.python_environment},
        )

    async def _introduce_tenants(self) -> None:
        await self.store.check_durability()
        self.api_keys = {tenant: ids.api_key() for tenant in TENANTS}
        holders = [(tenant, key, False) for tenant, key in self.api_keys.items()]
        for tenant, key, operator in (*holders, (TENANTS[0], self.operator_key, True)):
            await self.store.catalog.create_tenant(tenant, at_ms=0)
            await self.store.catalog.put_key(
                hashlib.sha256(key.encode()).hexdigest(),
                records.ApiKey(tenant=tenant, operator=operator, label="chaos", created_ms=0),
            )

    async def _register(self, tenant: str) -> None:
        gateway = self.gateways[0]
        async with torpor.connect(gateway, api_key=self.api_keys[tenant]) as client:
            await client.agents.register(self._agent, timeout_s=_REGISTER_TIMEOUT_S)

    async def _start_ray(self, node: Node) -> None:
        await node.start_worker(self.head.address, ray_compat.NAME_LABEL)

    # --- looking ----------------------------------------------------------------------------------

    @property
    def gateways(self) -> list[str]:
        """The addresses of all gateways, whether they answer now or not."""
        return [node.gateway for node in self.nodes.values()]

    async def owner(self, key: records.SessionKey) -> residents.Resident | None:
        """Return the process that holds a session by its head; None if none does, or it is dead."""
        head = await self.store.sessions.head(key)
        return self._residents.of(str(key), head.epoch) if head.owner else None

    def keep_room(self) -> None:
        """Let the shared disk grow where it is nearly full."""
        ground.keep_room(self.storage, ROOM_BYTES)

    async def residents(self) -> list[residents.Resident]:
        """Return all processes that live and claimed a session, with such as lost it since."""
        return self._residents.all()

    async def settled(self, timeout_s: float = NODE_TIMEOUT_S) -> None:
        """Wait until all nodes are in service; one whose Ray has ended is started again.

        Raises:
            TimeoutError: with what is missing.
        """
        missing = {"all": "not looked at"}
        try:
            async with asyncio.timeout(timeout_s):
                while missing := await self._missing():
                    affected = [node for name, node in self.nodes.items() if name in missing]
                    ended = [node for node in affected if not node.find(machine.Role.RAYLET)]
                    await asyncio.gather(*(self._restart_ray(node) for node in ended))
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise TimeoutError(f"not settled within {timeout_s} s: {missing}") from None

    async def _missing(self) -> dict[str, str]:
        """Return what keeps each node from service, by name."""
        try:
            views = {
                view.record.name: view
                for view in await self.store.nodes.views()
                if view.alive and view.record.incarnation not in self._over
            }
        except errors.StoreUnavailable as error:
            return {"store": str(error)}
        missing = {}
        for name, node in self.nodes.items():
            for role in (machine.Role.RAYLET, machine.Role.GATEWAY, machine.Role.AGENT):
                if not node.find(role):
                    missing[name] = f"no {role.value}"
                    break
            else:
                if name not in views:
                    missing[name] = "not announced, or its lease is over"
                elif views[name].load is None or views[name].load.draining:
                    missing[name] = "draining"
                elif not await asyncio.to_thread(_listens, node.gateway):
                    missing[name] = "its gateway does not listen"
        return missing

    # --- breaking ---------------------------------------------------------------------------------

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process of the deployment; nothing happens if it is gone.

        Raises:
            ValueError: it is somebody else's.
        """
        namespace = machine.namespace_of(pid)
        if namespace is None:
            return
        if namespace not in {each.namespace_id for each in (self.head, *self.nodes.values())}:
            raise ValueError(f"process {pid} is in none of this world's namespaces")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def partition(
        self, a: str, b: str, *, one_way: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Cut what `a` sends to `b`, and unless `one_way` the other way too.

        They are names of nodes, `store` or `head`.
        """
        return self.network.partition(a, b, one_way=one_way)

    async def kill_node(self, name: str) -> None:
        """End everything on a node at once."""
        await self.nodes[name].kill()
        await self._write_off(name)

    async def dismantle_node(self, name: str) -> None:
        """Let a node stand still, then end everything on it."""
        await self.nodes[name].dismantle()
        await self._write_off(name)

    async def start_node(self, name: str) -> None:
        """Start a killed node again; returns once all nodes are in service."""
        await self._restart_ray(self.nodes[name])
        await self.settled()

    async def kill_gateway(self, name: str) -> None:
        """Kill a node's gateway."""
        await self._kill(self.nodes[name], machine.Role.GATEWAY)

    async def kill_agent(self, name: str) -> None:
        """Kill a node's agent."""
        await self._write_off(name)
        await self._kill(self.nodes[name], machine.Role.AGENT)

    async def kill_raylet(self, name: str) -> None:
        """Kill a node's raylet; Ray ends the rest of the node."""
        await self._write_off(name)
        await self._kill(self.nodes[name], machine.Role.RAYLET)

    async def kill_head(self) -> None:
        """End everything on the head at once: Ray's control service and `torpor serve`."""
        await self.head.kill()

    async def start_head(self) -> None:
        """Start a killed head again; Ray's state is in its store."""
        await self.head.kill()
        await self.head.start_head(self.stores.ray_address)
        # One that came up before Ray's head did has joined by way of another machine, whose
        # processes it sees here.
        self.control.kill()

    async def kill_gcs(self) -> None:
        """Kill Ray's control service."""
        (pid,) = self.head.find(machine.Role.GCS)
        self._gcs = machine.command(pid)
        await self._kill(self.head, machine.Role.GCS)

    async def start_gcs(self) -> None:
        """Start it again as it was, and wait until it listens."""
        if self._gcs is None:
            raise RuntimeError("the control service was not killed")
        self.head.resume(self._gcs, "gcs-again.log")
        address = f"{self.head.address}:{machine.GCS_PORT}"

        async def answers() -> bool:
            return await asyncio.to_thread(_listens, address)

        await eventually.assert_eventually(answers, NODE_TIMEOUT_S)

    async def _restart_ray(self, node: Node) -> None:
        await node.kill()
        await self._write_off(node.name)
        await self._start_ray(node)

    async def _write_off(self, name: str) -> None:
        """Count no life of a node's agent that stands now as service."""
        with contextlib.suppress(errors.StoreUnavailable):
            views = await self.store.nodes.views()
            self._over |= {view.record.incarnation for view in views if view.record.name == name}

    async def _kill(self, where: machine.Machine, role: machine.Role) -> None:
        for pid in where.find(role):
            self.signal(pid, signal.SIGKILL)
            await machine.dies(pid)


def _write_settings(
    place: deployment.Deployment, store_url: str, folder: pathlib.Path
) -> pathlib.Path:
    """Write the settings of `torpor serve`, with the store behind its proxy; returns the file."""
    settings = {**msgspec.to_builtins(place, enc_hook=str), "store_url": store_url}
    path = folder / "torpor.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True
