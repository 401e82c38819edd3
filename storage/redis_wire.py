"""Commands to Redis and back: one connection and one round trip a call, and what a failure means.

The library's own retries are off: it cannot know which command may run twice. A command that was
never sent fails with `StoreUnavailable`; one whose answer was lost with the error that the caller
names.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis
from redis import backoff, exceptions
from redis.asyncio import connection as redis_connection
from redis.asyncio import retry

from torpor import errors

#: The words of a command: str, bytes or int.
Command = tuple[Any, ...]

#: A process that needs more at once has another problem than too few connections.
CONNECTIONS_MAX = 32
#: Covers an fsync on a busy disk; beyond it the outcome counts as unknown.
ANSWER_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0

_REMEDIES_READ_ONLY = {
    "READONLY": "it is a read-only replica; point store_url at the primary",
    "OOM": "it is full; raise maxmemory or give it a larger machine",
    "MISCONF": "it cannot save to its disk; look at its log and at the free space",
    "NOREPLICAS": "it has too few replicas; look at min-replicas-to-write and at the replicas",
}
#: Replies that say that the command was not run and may be later.
_AWAY = ("LOADING", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN")


#: Changes nothing, and is a write all the same, which a full server takes, too.
_MARK: Command = (
    *("EVAL", "#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], '')"),
    *(1, "torpor:mark"),
)


class ScriptMissing(Exception):
    """The server does not have the script."""


class Wire:
    """A bounded pool of connections to one server."""

    def __init__(
        self,
        url: str,
        *,
        connections_max: int = CONNECTIONS_MAX,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._arguments: dict[str, Any] = {
            **redis_connection.parse_url(url),
            "protocol": 2,
            "retry": retry.Retry(backoff.NoBackoff(), 0),
            # One timer around the whole exchange does; the library's would cost a task each.
            "socket_timeout": None,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "driver_info": None,
        }
        self._kind: type[redis_connection.AbstractConnection] = self._arguments.pop(
            "connection_class", redis_connection.Connection
        )
        self._answer_timeout_s = answer_timeout_s
        self._free = asyncio.Semaphore(connections_max)
        self._idle: list[redis_connection.AbstractConnection] = []
        self._closed = False
        #: How many connections have ended: those after them may lead to another server.
        self.connections_lost = 0
        #: Awaited before a write, until it is set to None: decides `barrier`, or refuses.
        self.before_writes: Callable[[], Awaitable[object]] | None = None
        #: Sent after each write, on its connection.
        self.barrier: Barrier | None = None
        #: Whether durable reads are. Who has waited for all that it reads need not wait again.
        self.reads_wait = True

    async def read(
        self, *commands: Command, lost: type[errors.Unavailable] = errors.StoreUnavailable
    ) -> list[Any]:
        """Return the replies of commands that change nothing, or nothing that must be durable."""
        replies = await self._exchange(commands, lost)
        for reply in replies:
            if isinstance(reply, Exception):
                raise _meaning(reply)
        return replies

    async def write(
        self, *commands: Command, lost: type[errors.Unavailable] = errors.StoreUnavailable
    ) -> list[Any]:
        """Return the replies of commands once what they wrote is durable."""
        if self.before_writes is not None:
            await self.before_writes()
        if self.barrier is None:
            return await self.read(*commands, lost=lost)
        answers = await self._exchange((*commands, *self.barrier.commands), lost)
        replies, reached = answers[: len(commands)], answers[-1]
        for reply in replies:
            if isinstance(reply, Exception):
                raise _meaning(reply)
        self.barrier.check(reached, lost)
        return replies

    async def read_durable(self, *commands: Command) -> list[Any]:
        """Return the replies of reads once what they show is durable.

        A server shows to all what one connection wrote and is still waiting for. A wait speaks of
        its own connection's writes, so one is made after the read.
        """
        if not self.reads_wait:
            return await self.read(*commands)
        if self.before_writes is not None:
            await self.before_writes()
        if self.barrier is None:
            return await self.read(*commands)
        return (await self.write(*commands, _MARK))[:-1]

    async def settle(self) -> None:
        """Return once all that was read so far is durable, for who may have read nothing new."""
        if self.reads_wait:
            await self.flush()

    async def flush(self) -> None:
        """Return once all that was written or read so far is durable."""
        if self.before_writes is not None:
            await self.before_writes()
        if self.barrier is not None:
            await self.write(_MARK)

    async def connect(self) -> redis_connection.AbstractConnection:
        """Return a new connection that is not of the pool.

        Raises:
            StoreUnavailable
        """
        made = self._kind(**self._arguments)
        await _open(made)
        return made

    async def close(self) -> None:
        """Close all connections; those in use are closed as they come back."""
        self._closed = True
        while self._idle:
            await self._idle.pop().disconnect()

    async def _exchange(
        self, commands: Sequence[Command], lost: type[errors.Unavailable]
    ) -> list[Any]:
        packed = b"".join(hiredis.pack_command(command) for command in commands)
        await self._turn()
        try:
            connection = await self._connection()
            try:
                async with asyncio.timeout(self._answer_timeout_s):
                    await connection.send_packed_command(packed, check_health=False)
                    return [await _reply(connection) for _ in commands]
            except (exceptions.BusyLoadingError, exceptions.AuthenticationError) as error:
                raise errors.StoreUnavailable(f"Redis does not answer yet: {error}") from error
            except (exceptions.RedisError, TimeoutError) as error:
                what = str(error) or "timed out"
                raise lost(f"Redis{_at(connection)} did not answer: {what}") from error
            finally:
                if self._closed:
                    await connection.disconnect()
                else:
                    self._idle.append(connection)
        finally:
            self._free.release()

    async def _turn(self) -> None:
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise errors.StoreUnavailable("all connections to Redis are busy") from error

    async def _connection(self) -> redis_connection.AbstractConnection:
        """Return a connection that is open: what fails here was never sent."""
        used_before = bool(self._idle)
        connection = self._idle.pop() if used_before else self._kind(**self._arguments)
        if connection.is_connected and await connection.can_read():
            # The server closed it meanwhile, or an answer came that nobody waits for.
            await connection.disconnect(nowait=True)
        if not connection.is_connected:
            self.connections_lost += used_before
            await _open(connection)
        return connection


class Barrier:
    """A wait, on the connection of the write, until the write has reached disks."""

    def __init__(self, *, local: int, replicas: int, timeout_ms: int) -> None:
        self._wanted = (local, replicas)
        #: `check` takes the reply to the last one.
        self.commands: tuple[Command, ...] = (("WAITAOF", local, replicas, timeout_ms),)
        if replicas:
            # A replica says what its disk has when it is asked, and then once a second. Asked when
            # it has the write already, its first answer is the one that counts.
            half_ms = timeout_ms // 2
            self.commands = (("WAIT", replicas, half_ms), ("WAITAOF", local, replicas, half_ms))

    def check(self, reached: Any, lost: type[errors.Unavailable]) -> None:
        """Raise `lost` unless enough disks answered in time."""
        if isinstance(reached, Exception):
            raise lost(f"Redis wrote, and could not wait for the disk: {reached}") from reached
        if any(have < want for have, want in zip(reached, self._wanted, strict=True)):
            raise lost(f"Redis wrote, and {reached} disks of {self._wanted} confirmed it in time")


async def _open(connection: redis_connection.AbstractConnection) -> None:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await connection.connect()
    except (exceptions.RedisError, TimeoutError) as error:
        await connection.disconnect(nowait=True)
        raise errors.StoreUnavailable(
            f"cannot connect to Redis: {str(error) or 'timed out'}"
        ) from error
    except asyncio.CancelledError:
        await connection.disconnect(nowait=True)
        raise


def _at(connection: redis_connection.AbstractConnection) -> str:
    host, port = getattr(connection, "host", ""), getattr(connection, "port", "")
    return f" at {host}:{port}" if host else ""


async def _reply(connection: redis_connection.AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except exceptions.ResponseError as error:
        return error


def _meaning(error: Exception) -> Exception:
    """Return what an error reply means for torpor. None of them leaves half a write behind."""
    text = str(error)
    code = getattr(error, "status_code", None) or text.partition(" ")[0]
    if code == "NOSCRIPT":
        return ScriptMissing(text)
    if code in _REMEDIES_READ_ONLY:
        return errors.StoreReadOnly(f"Redis refuses to write: {_REMEDIES_READ_ONLY[code]} ({text})")
    if code in _AWAY:
        return errors.StoreUnavailable(f"Redis cannot answer now: {text}")
    if code == "NOPERM":
        return errors.StoreUnavailable(f"the user of store_url lacks a right: {text}")
    return errors.Internal(f"Redis answered {code} {text}")
