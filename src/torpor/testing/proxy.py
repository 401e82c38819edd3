"""A TCP proxy between clients and a server: forwards, loses answers, stalls, cuts, or is down."""

import asyncio
import enum
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self, cast


class Mode(enum.Enum):
    """What the proxy does with bytes."""

    FORWARD = enum.auto()
    #: Requests arrive, answers do not: the connection is cut when the first one comes.
    DROP_REPLIES = enum.auto()
    #: Connections are accepted and stay, and nothing passes, in either direction, until later.
    STALL = enum.auto()
    #: Connections are refused, and those that stand are cut.
    DOWN = enum.auto()


class Proxy:
    """An async context manager that listens on an address, and a port of its own if 0."""

    def __init__(
        self,
        target_port: int,
        *,
        target_host: str = "127.0.0.1",
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._marks: Collection[bytes] = ()
        self.host = host
        self.port = port
        #: Host and port of the server; `retarget` changes it.
        self.target = (target_host, target_port)
        #: `set_mode` changes it.
        self.mode = Mode.FORWARD
        #: Answers that were dropped.
        self.dropped = 0
        #: Of the answers that `lose_answers` named, those still to come.
        self.to_lose = 0

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.set_mode(Mode.DOWN)

    @property
    def url(self) -> str:
        """The server's URL by way of this proxy."""
        return f"redis://{self.host}:{self.port}/0"

    async def set_mode(self, mode: Mode) -> None:
        """Change what happens from now on."""
        self.mode = mode
        for link in self._links:
            link.regulate()
        if mode is not Mode.DOWN:
            await self._listen()
            return
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def retarget(self, host: str, port: int) -> None:
        """Forward to another server from now on; connections to the one before are cut."""
        self.target = (host, port)
        self.cut()

    def cut(self, after_bytes: int = 0) -> None:
        """Cut each connection that stands once so much more has passed on it."""
        for link in list(self._links):
            link.cut(after_bytes)

    def lose_answers(self, count: int, marks: Collection[bytes]) -> None:
        """Lose the answers to the next `count` requests that contain one of `marks`.

        The server handles them, and their connections are cut instead of answered. The mark must
        lie in the first bytes of a request, and each connection have one request under way. An
        answer that is an error in Redis' protocol passes: it says that nothing was done.
        """
        self.to_lose, self._marks = count, marks

    def loses_answer_to(self, request: bytes) -> bool:
        """Whether the answer to this request is one to lose."""
        return self.to_lose > 0 and any(mark in request for mark in self._marks)

    async def _listen(self) -> None:
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._accept, self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self) -> "_End":
        link = _Link(self, self._links.discard)
        self._links.add(link)
        return link.client


class _Link:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, forget: "Callable[[_Link], None]") -> None:
        self._proxy = proxy
        self._forget = forget
        self.client = _End(self._connect, self._pass_request, self.regulate, self._end)
        self.server = _End(self.regulate, self._pass_answer, self.regulate, self._end)
        self._connecting: asyncio.Task[None] | None = None
        #: Bytes that may still pass before it is cut.
        self._left: int | None = None
        #: Whether the next answer is one to lose.
        self._marked = False

    def cut(self, after_bytes: int) -> None:
        self._left = after_bytes
        if not after_bytes:
            self._end(at_once=True)

    def regulate(self) -> None:
        """Read from each end only while the other one takes it."""
        stalled = self._proxy.mode is Mode.STALL
        for end, other in ((self.client, self.server), (self.server, self.client)):
            end.read(not stalled and other.takes_bytes)

    def _connect(self) -> None:
        if self._proxy.mode is Mode.DOWN:
            self._end()
            return
        self.regulate()
        self._connecting = asyncio.create_task(self._reach_server())

    async def _reach_server(self) -> None:
        host, port = self._proxy.target
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, host, port)
        except OSError:
            self._end()

    def _pass_request(self, data: bytes) -> None:
        self._marked = self._marked or self._proxy.loses_answer_to(data)
        self._pass(data, self.server)

    def _pass_answer(self, data: bytes) -> None:
        if self._proxy.mode is Mode.DROP_REPLIES:
            self._drop()
            return
        if self._marked and self._proxy.to_lose and not data.startswith(b"-"):
            self._proxy.to_lose -= 1
            self._drop()
            return
        self._marked = False
        self._pass(data, self.client)

    def _drop(self) -> None:
        self._proxy.dropped += 1
        self._end()

    def _pass(self, data: bytes, to: "_End") -> None:
        if self._left is None:
            to.write(data)
            return
        to.write(data[: self._left])
        self._left -= min(self._left, len(data))
        if not self._left:
            self._end()

    def _end(self, *, at_once: bool = False) -> None:
        self._forget(self)
        if self._connecting is not None:
            self._connecting.cancel()
        for end in (self.client, self.server):
            end.close(at_once)


class _End(asyncio.Protocol):
    """One of the two connections of a link."""

    def __init__(
        self,
        begun: Callable[[], None],
        received: Callable[[bytes], None],
        changed: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self._begun = begun
        self._changed = changed
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        #: Whether it is connected and has room for what the other end reads.
        self.takes_bytes = False
        # Nothing stands between the event loop and what is done with bytes.
        self.data_received = received  # type: ignore[method-assign, assignment]

    def read(self, wanted: bool) -> None:
        if self._transport is not None:
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self, at_once: bool) -> None:
        if self._transport is not None:
            (self._transport.abort if at_once else self._transport.close)()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.takes_bytes = True
        self._begun()

    def pause_writing(self) -> None:
        self.takes_bytes = False
        self._changed()

    def resume_writing(self) -> None:
        self.takes_bytes = True
        self._changed()

    def connection_lost(self, _error: Exception | None) -> None:
        self._ended()
