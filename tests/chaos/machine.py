"""One machine of a world: a namespace, what runs in it, and Ray's part of that."""

import asyncio
import enum
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping

import msgspec

import network
from torpor.testing import eventually

TOOLS = pathlib.Path(sys.executable).parent
#: `ray start` and what it starts are there within this on a slow machine that is busy.
START_TIMEOUT_S = 120.0
#: Ray's control service listens here.
GCS_PORT = 6379
GATEWAY_PORT = 7420
_OBJECT_STORE_BYTES = 80 << 20
_DEATH_TIMEOUT_S = 20.0

#: As in cluster.yaml, which says why.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_maximum_gcs_destroyed_actor_cached_count": "2000",
    "RAY_maximum_gcs_dead_worker_cached_count": "2000",
    "RAY_task_events_max_num_task_in_gcs": "10000",
    "RAY_metric_cardinality_level": "low",
}


class Role(enum.Enum):
    """A kind of process, by its command line."""

    GCS = "gcs_server"
    RAYLET = "raylet"
    GATEWAY = "ray::GatewayActor"
    AGENT = "ray::NodeAgent"
    #: A session's process, or a slot that waits for one.
    SESSION = "ray::AgentSession"
    FORK_SERVER = "fork_server.main()"


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A running process as it can be started again."""

    pid: int
    words: list[str]
    environment: dict[str, str]


class Machine:
    """A namespace with an address; its processes see the whole file system."""

    def __init__(
        self,
        name: str,
        *,
        namespace: str,
        address: str,
        folder: pathlib.Path,
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        #: What `namespace_of` says of its processes.
        self.namespace_id = pathlib.Path("/run/netns", namespace).stat().st_ino
        self._folder = folder
        self._environment = {
            # Compiled modules are what lets processes start fast.
            **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
            **RAY_ENVIRONMENT,
            **environment,
        }
        folder.mkdir(parents=True, exist_ok=True)

    async def start_head(self, ray_store: str) -> None:
        """Start Ray's head, whose state is in the store at `ray_store`, `host:port`."""
        await self._start_ray(
            *("--head", f"--port={GCS_PORT}", "--num-cpus=0", "--include-dashboard=false"),
            RAY_REDIS_ADDRESS=ray_store,
            RAY_external_storage_namespace="torpor",
        )

    async def start_worker(self, head: str, name_label: str) -> None:
        """Start a Ray node that joins the head at address `head`."""
        await self._start_ray(
            *(f"--address={head}:{GCS_PORT}", "--num-cpus=1"),
            *("--labels", f"{name_label}={self.name}"),
        )

    async def _start_ray(self, *words: str, **environment: str) -> None:
        # Left by an earlier life. Ray would take the processes of other machines, which it sees
        # here, for those of this one.
        (self._folder / "ray_current_cluster").unlink(missing_ok=True)
        process = self.start(
            "ray-start.log",
            *(str(TOOLS / "torpor"), "node", "start", f"--node-ip-address={self.address}"),
            *(f"--temp-dir={self._folder}", f"--object-store-memory={_OBJECT_STORE_BYTES}"),
            *("--disable-usage-stats", *words),
            environment=environment,
        )
        try:
            code = await asyncio.to_thread(process.wait, START_TIMEOUT_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code:
            said = (self._folder / "ray-start.log").read_text(errors="replace")
            raise RuntimeError(f"`ray start` on {self.name} ended with {code}: {said[-2000:]}")

    def start(
        self, log: str, *words: str, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a program; its output is appended to the file `log` in the machine's folder."""
        with (self._folder / log).open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *words],
                env={**self._environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def resume(self, command: Command, log: str) -> "subprocess.Popen[bytes]":
        """Start again what ran before, in its own environment alone."""
        with (self._folder / log).open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command.words],
                env=command.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def find(self, role: Role) -> list[int]:
        """Return the machine's processes of a kind, by id."""
        return [pid for pid in network.pids(self.namespace) if plays(pid, role)]

    async def freeze(self) -> None:
        """Stop all processes here where they are."""
        await asyncio.to_thread(network.signal_all, self.namespace, signal.SIGSTOP)

    async def thaw(self) -> None:
        """Let them go on."""
        await asyncio.to_thread(network.signal_all, self.namespace, signal.SIGCONT)

    async def kill(self) -> None:
        """Kill everything here at once, as a power failure does."""
        await asyncio.to_thread(network.kill_all, self.namespace)

    async def dismantle(self) -> None:
        """Let everything here stand still, then end it at no cost to others."""
        await asyncio.to_thread(network.dismantle, self.namespace)


def plays(pid: int, role: Role) -> bool:
    """Whether a process lives and is of a kind."""
    words = command_line(pid)
    if role in (Role.GCS, Role.RAYLET):
        return bool(words) and pathlib.Path(words[0]).name == role.value
    if role is Role.FORK_SERVER:
        return any(word.endswith(role.value) for word in words)
    return bool(words) and words[0].startswith(role.value)


def namespace_of(pid: int) -> int | None:
    """Return the number of the network namespace that a process is in; None if it is gone."""
    try:
        return pathlib.Path("/proc", str(pid), "ns/net").stat().st_ino
    except (FileNotFoundError, ProcessLookupError):
        return None


def command_line(pid: int) -> list[str]:
    """Return a process's words; none if it is gone."""
    try:
        raw = pathlib.Path("/proc", str(pid), "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [word.decode(errors="replace") for word in raw.split(b"\0") if word]


def command(pid: int) -> Command:
    """Return a running process as it can be started again.

    Raises:
        FileNotFoundError: it is gone.
    """
    # Empty words count: a flag may be given as two words, the second of them empty.
    raw = pathlib.Path("/proc", str(pid), "cmdline").read_bytes()
    words = raw.removesuffix(b"\0").split(b"\0")
    pairs = pathlib.Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    environment = dict(pair.decode().split("=", 1) for pair in pairs if b"=" in pair)
    return Command(pid=pid, words=[word.decode() for word in words], environment=environment)


async def dies(pid: int) -> None:
    """Wait until a killed process is gone, or is one that nobody has waited for.

    Raises:
        AssertionError: it does not die.
    """

    async def is_gone() -> bool:
        # A process that nobody has waited for has no command line either.
        return not command_line(pid)

    await eventually.assert_eventually(is_gone, _DEATH_TIMEOUT_S)
