"""A deployment on this machine, as a value that tests, the demo and `torpor dev` share."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import pathlib
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import msgspec

from torpor import control_plane, deployment, errors, ids
from torpor.actors import ray_compat
from torpor.dev import store_server
from torpor.storage import keyring, records, redis_store

#: The tenant that `torpor dev` makes.
TENANT = "dev"
#: What commands that work on the deployment itself read while it runs.
SETTINGS = "torpor.yaml"
#: Further nodes' gateways listen this much higher: 7421 is left to HTTP.
PORT_STEP = 10


class LocalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a local deployment is like."""

    #: Data that outlives it: the store's file, blobs, keys.
    folder: pathlib.Path
    nodes: int = 1
    #: The first gateway's; 0 for any that are free.
    port: int = 7420
    dashboard: bool = False
    lease_ttl_ms: int = 10_000
    sessions_per_node_max: int = 200


class LocalDeployment:
    """Embedded Valkey, N Ray nodes, a gateway and a node agent on each.

    An async context manager. Data stays in the folder; a second deployment on the same folder finds
    everything again.
    """

    def __init__(
        self, options: LocalOptions, *, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._options = options
        self._say = say
        self._exits = contextlib.AsyncExitStack()
        self.cluster: ray_compat.LocalCluster
        self.control: control_plane.ControlPlane
        self.deployment: deployment.Deployment
        self.store_server: store_server.StoreServer
        self.api_key = ""

    @property
    def gateways(self) -> list[str]:
        """The gateways' addresses, in order of their nodes' names."""
        running = sorted(self.control.running.values(), key=lambda each: each.name)
        return [each.gateway for each in running]

    async def __aenter__(self) -> Self:
        """Start everything.

        Raises:
            FailedPrecondition: another deployment uses the folder, or a port is taken.
            StoreUnavailable: the store does not start.
        """
        try:
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
        """Evict all sessions in order and stop everything."""
        await self._exits.aclose()

    async def _start(self) -> None:
        options, folder = self._options, self._options.folder
        folder.mkdir(parents=True, exist_ok=True)
        self._exits.callback(_lock(folder))
        settings = folder / SETTINGS
        # Of an earlier one that was killed: the port in it may be somebody else's by now.
        settings.unlink(missing_ok=True)
        ports = [options.port + i * PORT_STEP for i in range(options.nodes)] if options.port else []
        check_ports_free(ports)
        with contextlib.suppress(FileExistsError):
            keyring.create(folder / "signing-keys")
        self._say("starting Valkey")
        self.store_server = await asyncio.to_thread(store_server.StoreServer, folder / "valkey")
        self._exits.push_async_callback(asyncio.to_thread, self.store_server.stop)
        self.deployment = self._describe(self.store_server.url)
        settings.write_bytes(msgspec.yaml.encode(self.deployment, enc_hook=str))
        self._exits.callback(settings.unlink, missing_ok=True)
        self.api_key = await self._introduce_tenant()
        self._say(f"starting Ray with {options.nodes} node{'s' * (options.nodes > 1)}")
        # Blocks, and must: Ray sets signal handlers, which only the main thread may.
        self.cluster = ray_compat.LocalCluster(options.nodes, dashboard=options.dashboard)
        self._exits.callback(self.cluster.stop)
        self.cluster.connect()
        self._say("starting gateways and node agents")
        self.control = control_plane.ControlPlane(self.deployment)
        self._exits.push_async_callback(self.control.retire)
        await self.control.reconcile()
        (folder / "address").write_text("".join(f"{each}\n" for each in self.gateways))

    def _describe(self, store_url: str) -> deployment.Deployment:
        options, folder = self._options, self._options.folder.resolve()
        return deployment.Deployment(
            store_url=store_url,
            durability=deployment.Durability.FSYNC,
            storage=folder / "storage",
            scratch=folder / "nodes",
            signing_key_file=folder / "signing-keys",
            gateway_port=options.port,
            gateway_port_step=PORT_STEP if options.port else 0,
            load_scope=deployment.LoadScope.NODE,
            head_hosts_sessions=True,
            lease_ttl_ms=options.lease_ttl_ms,
            sessions_per_node_max=options.sessions_per_node_max,
        )

    async def _introduce_tenant(self) -> str:
        """Make the tenant and its API key known; the key is kept for the next start."""
        path = self._options.folder / "api-key"
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(ids.api_key() + "\n")
        key = path.read_text().strip()
        store = redis_store.open(self.deployment)
        try:
            await store.check_durability()
            await store.catalog.create_tenant(TENANT, at_ms=0)
            await store.catalog.put_key(
                hashlib.sha256(key.encode()).hexdigest(),
                records.ApiKey(tenant=TENANT, operator=True, label="torpor dev", created_ms=0),
            )
        finally:
            await store.close()
        return key


def check_ports_free(ports: Sequence[int]) -> None:
    """Raise FailedPrecondition, naming the port and the remedy, if one of them is taken."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise errors.FailedPrecondition(
                    f"port {port} is taken ({error.strerror}); choose another with --port, or wait "
                    "if a `torpor dev` was killed here: its processes end within a minute",
                    port=port,
                ) from None


def _lock(folder: pathlib.Path) -> Callable[[], None]:
    """Take the folder for this process; returns what gives it back.

    Raises:
        FailedPrecondition: another process has it.
    """
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise errors.FailedPrecondition(
            f"another `torpor dev` (process {holder}) uses {folder}; stop it, or choose another "
            "folder with --data-dir"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file.close
