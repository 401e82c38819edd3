"""The stores of a world: two servers for sessions behind a proxy, and one for Ray.

The deployment is given the proxy's URL. One server is the primary, the other follows it, and they
change places in a failover. All that blocks runs in threads: the proxy carries the traffic of the
whole world in this event loop.
"""

import asyncio
import contextlib
import hashlib
import importlib.resources
import pathlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from redis import asyncio as redis

import wall_clock
from torpor import deployment
from torpor.testing import eventually, proxy, valkey

#: A copy of a run's data and its first write to disk take a second or two.
SYNC_TIMEOUT_S = 60.0
#: Longer than it takes until the replica has what the primary has.
_PAUSE_MS = 10_000
_ANSWER_TIMEOUT_S = 10.0
#: A port of this machine that nobody listens on.
_NOWHERE = ("127.0.0.1", "1")
#: Nobody waits for replicas that may follow soon.
_SETTINGS = {"repl-diskless-sync-delay": "0"}
_REPLICATED = {"min-replicas-to-write": "1"}


class Stores:
    """An async context manager. `primary` and `replica` are who they are now."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ray_host: str = "127.0.0.1",
        durability: deployment.Durability = deployment.Durability.FSYNC,
    ) -> None:
        """Describe the stores; nothing is started.

        Args:
            folder: gets their files and logs.
            host: where the proxy listens.
            port: the proxy's; one that is free if 0.
            ray_host: where Ray's store listens.
            durability: what the deployment will ask for. With `REPLICATED` a primary without a
                replica refuses to write.
        """
        folder.mkdir(parents=True, exist_ok=True)
        #: Of both servers for sessions.
        self.clock = wall_clock.WallClock(folder / "clock")
        replicated = durability is deployment.Durability.REPLICATED
        settings = _SETTINGS | (_REPLICATED if replicated else {})
        self.primary, self.replica = (
            valkey.Server(folder / name, settings=settings, environment=self.clock.environment)
            for name in ("sessions-a", "sessions-b")
        )
        self._ray = valkey.Server(folder / "ray", host=ray_host)
        #: In front of the primary, for the deployment.
        self.proxy = proxy.Proxy(self.primary.port, host=host, port=port)
        #: Likewise for the harness: no fault touches it.
        self._direct = proxy.Proxy(self.primary.port)
        self._exits = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        """The sessions' store as the deployment sees it."""
        return self.proxy.url

    @property
    def direct_url(self) -> str:
        """The same past the faults of the proxy; follows the primary."""
        return self._direct.url

    @property
    def ray_address(self) -> str:
        """`host:port` of the store of Ray's control service."""
        return f"{self._ray.host}:{self._ray.port}"

    async def __aenter__(self) -> Self:
        """Start all, and wait until the replica follows."""
        self._exits.callback(wall_clock.remove_left_overs)
        servers = (self.primary, self.replica, self._ray)
        for server in servers:
            self._exits.push_async_callback(asyncio.to_thread, server.kill)
        try:
            await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
            for each in (self.proxy, self._direct):
                await self._exits.enter_async_context(each)
            await self._follow()
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
        """Kill all."""
        await self._exits.aclose()

    # --- the primary ------------------------------------------------------------------------------

    async def kill_primary(self) -> None:
        """Kill it without warning; who connects is refused."""
        await asyncio.to_thread(self.primary.kill)
        await self._set_mode(proxy.Mode.DOWN)

    async def start_primary(self) -> None:
        """Start it again on its file."""
        await asyncio.to_thread(self.primary.start)
        await self._set_mode(proxy.Mode.FORWARD)

    async def restart_primary(self) -> None:
        """Kill it, and start it again on its file."""
        await self.kill_primary()
        await self.start_primary()

    @contextlib.asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Stop it where it is, and let it go on."""
        self.primary.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.primary.signal(signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def full(self, spare_bytes: int = 0) -> AsyncIterator[None]:
        """Let it have room for so much more, and then refuse what needs memory."""
        used = (await _ask(self.primary, "INFO", "memory"))["used_memory"]
        await _ask(self.primary, "CONFIG", "SET", "maxmemory", used + spare_bytes)
        try:
            yield
        finally:
            await _ask(self.primary, "CONFIG", "SET", "maxmemory", 0)

    @contextlib.asynccontextmanager
    async def read_only(self) -> AsyncIterator[None]:
        """Make it a replica of nobody who answers, as one that was demoted, and primary again."""
        await _ask(self.primary, "REPLICAOF", *_NOWHERE)
        try:
            yield
        finally:
            await _ask(self.primary, "REPLICAOF", "NO", "ONE")

    @contextlib.asynccontextmanager
    async def jumped(self, offset_s: int) -> AsyncIterator[None]:
        """Let its wall clock jump by so many seconds, and back.

        Raises:
            FileNotFoundError: this machine has no libfaketime.
        """
        if wall_clock.library() is None:
            raise FileNotFoundError("there is no libfaketime: apt-get install libfaketime")
        try:
            await self._jump(offset_s)
            yield
        finally:
            await self._jump(0)

    async def _jump(self, offset_s: int) -> None:
        before_s, _ = await _ask(self.primary, "TIME")
        self.clock.jump_to(offset_s)
        real_s, _ = await _ask(self._ray, "TIME")
        # Half of the way tells apart where it was and where it goes.
        goal_s, near_s = real_s + offset_s, abs(before_s - real_s - offset_s) / 2

        async def arrived() -> bool:
            now_s, _ = await _ask(self.primary, "TIME")
            return abs(now_s - goal_s) <= near_s

        await eventually.assert_eventually(arrived, 4 * wall_clock.SEEN_AFTER_S)

    # --- the replica ------------------------------------------------------------------------------

    async def synced(self) -> None:
        """Wait until the replica follows, and has on its disk what it was given.

        Raises:
            AssertionError: not within `SYNC_TIMEOUT_S`.
        """

        async def follows() -> bool:
            facts = await _ask(self.replica, "INFO")
            return bool(
                facts.get("master_link_status") == "up"
                and facts["aof_enabled"]
                and not facts["aof_rewrite_in_progress"]
                and not facts["aof_rewrite_scheduled"]
            )

        await eventually.assert_eventually(_tried(follows), SYNC_TIMEOUT_S)

    async def refused_for_memory(self) -> int:
        """Return how often it refused something since it was started, for it was full."""
        facts = await _ask(self.primary, "INFO", "errorstats")
        return int(facts.get("errorstat_OOM", {}).get("count", 0))

    async def detach_replica(self) -> None:
        """Let the replica have nothing that is written from now on, and all that was before."""
        await self.synced()
        await self._catch_up(SYNC_TIMEOUT_S)
        await _ask(self.replica, "REPLICAOF", "NO", "ONE")

    async def promote_replica(self) -> None:
        """Kill the primary, and put the replica with what it has in its place.

        What the primary acknowledged lately may be missing there; after `detach_replica` it is.
        """
        await self.kill_primary()
        await _ask(self.replica, "REPLICAOF", "NO", "ONE")
        self.primary, self.replica = self.replica, self.primary
        for each in (self.proxy, self._direct):
            each.retarget(self.primary.host, self.primary.port)
        await self._set_mode(proxy.Mode.FORWARD)

    async def fail_over(self) -> None:
        """Put the replica in the primary's place once it has all that was acknowledged."""
        await self.synced()
        await _ask(self.primary, "CLIENT", "PAUSE", _PAUSE_MS, "WRITE")
        await self._catch_up(_PAUSE_MS / 1000 / 2)
        await self.promote_replica()

    async def _catch_up(self, timeout_s: float) -> None:
        """Wait until the replica has what the primary has now."""
        wanted = (await _ask(self.primary, "INFO", "replication"))["master_repl_offset"]

        async def has_it() -> bool:
            theirs = await _ask(self.replica, "INFO", "replication")
            return bool(
                theirs.get("master_link_status") == "up" and theirs["slave_repl_offset"] >= wanted
            )

        await eventually.assert_eventually(has_it, timeout_s)

    async def rebuild_replica(self) -> None:
        """Start the server that was primary; it forgets what it has and follows the new one."""
        await asyncio.to_thread(self.replica.start)
        await self._follow()

    async def _set_mode(self, mode: proxy.Mode) -> None:
        for each in (self.proxy, self._direct):
            await each.set_mode(mode)

    async def _follow(self) -> None:
        await _ask(self.replica, "REPLICAOF", self.primary.host, self.primary.port)
        await self.synced()


def commit_marks() -> tuple[bytes, ...]:
    """Return what requests to commit contain: the script's digest, or the script itself."""
    script = (importlib.resources.files("torpor.storage") / "lua" / "commit.lua").read_bytes()
    digest = hashlib.sha1(script, usedforsecurity=False).hexdigest()
    return digest.encode(), script[: len(digest)]


async def _ask(server: valkey.Server, *words: str | int) -> Any:
    """Return the answer to one command, parsed, over a connection of its own."""
    asking = redis.Redis(host=server.host, port=server.port, socket_timeout=_ANSWER_TIMEOUT_S)
    try:
        return await asking.execute_command(*words)
    finally:
        await asking.aclose()


def _tried(check: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
    """Take a server that loads its data, or does not answer yet, for one that is not there yet."""

    async def once() -> bool:
        try:
            return await check()
        except redis.RedisError:
            return False

    return once
