"""A TCP proxy between a test and a server: forwards, loses answers, or is down."""

import asyncio
import enum
from types import TracebackType
from typing import Self

_READ_BYTES = 64 << 10


class Mode(enum.Enum):
    """What the proxy does with bytes."""

    FORWARD = enum.auto()
    #: Requests arrive, answers do not: the connection is cut when the first one comes.
    DROP_REPLIES = enum.auto()
    #: Connections are refused, and those that stand are cut.
    DOWN = enum.auto()


class Proxy:
    """An async context manager that listens on a loopback port of its own."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._mode = Mode.FORWARD
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self.port = 0
        #: Answers that were dropped.
        self.dropped = 0

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
        return f"redis://127.0.0.1:{self.port}/0"

    async def set_mode(self, mode: Mode) -> None:
        """Change what happens from now on."""
        self._mode = mode
        if mode is not Mode.DOWN:
            await self._listen()
            return
        if self._server is not None:
            self._server.close()
            self._server = None
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None  # noqa: S101 - start_server runs this in a task
        self._links[link] = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._links[link].append(far_writer)
            ways = (
                asyncio.create_task(self._requests(reader, far_writer)),
                asyncio.create_task(self._replies(far_reader, writer)),
            )
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in self._links.pop(link):
                end.close()

    async def _requests(self, reader: asyncio.StreamReader, far: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_BYTES):
            far.write(data)
            await far.drain()

    async def _replies(self, far: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await far.read(_READ_BYTES):
            if self._mode is Mode.DROP_REPLIES:
                self.dropped += 1
                return
            writer.write(data)
            await writer.drain()
