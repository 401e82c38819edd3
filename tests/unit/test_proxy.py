"""What the proxy between a test and a server does with bytes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Self

import pytest

from torpor.testing import eventually, proxy

#: Longer than any wait here has to be.
TIMEOUT_S = 10.0
#: More than the buffers of four sockets hold.
LARGE_BYTES = 32 << 20


class Echo:
    """A server that answers with what it got, and remembers it."""

    def __init__(self) -> None:
        self.got = bytearray()
        self._links: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for link in self._links:
            link.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._links.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.got += data
                writer.write(data)
                await writer.drain()
        writer.close()


class Connection:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def ask(self, data: bytes) -> bytes:
        """Send, and return as many bytes as were sent, or fewer if the connection ends."""
        self.writer.write(data)
        return await self.answer(len(data))

    async def answer(self, size: int) -> bytes:
        """Return the next bytes, or fewer if the connection ends."""
        async with asyncio.timeout(TIMEOUT_S):
            try:
                return await self._reader.readexactly(size)
            except asyncio.IncompleteReadError as error:
                return error.partial
            except OSError:
                return b""


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    """A server."""
    async with Echo() as server:
        yield server


@pytest.fixture
async def between(echo: Echo) -> AsyncIterator[proxy.Proxy]:
    """A proxy in front of it."""
    async with proxy.Proxy(echo.port) as made:
        yield made


@contextlib.asynccontextmanager
async def connected(between: proxy.Proxy) -> AsyncIterator[Connection]:
    """Yield a connection by way of the proxy."""
    reader, writer = await asyncio.open_connection(between.host, between.port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def test_bytes_pass_both_ways(between: proxy.Proxy) -> None:
    """What is sent arrives, in order, also when it is more than buffers hold."""
    large = bytes(range(256)) * (LARGE_BYTES >> 8)
    async with connected(between) as client:
        assert await client.ask(b"small") == b"small"
        assert await client.ask(large) == large


async def test_stalled_bytes_arrive_later(between: proxy.Proxy, echo: Echo) -> None:
    """A stall holds what is sent, also on new connections, and lets all of it pass afterwards."""
    async with connected(between) as client:
        assert await client.ask(b"before") == b"before"
        await between.set_mode(proxy.Mode.STALL)
        async with connected(between) as late:
            client.writer.write(b"during")
            late.writer.write(b"late")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.answer(1), 0.05)
            assert echo.got == b"before"
            await between.set_mode(proxy.Mode.FORWARD)
            assert await late.answer(4) == b"late"
            assert await client.answer(6) == b"during"


async def test_down_refuses_and_cuts(between: proxy.Proxy) -> None:
    """While it is down nothing connects; afterwards it listens where it did."""
    async with connected(between) as client:
        assert await client.ask(b"up") == b"up"
        await between.set_mode(proxy.Mode.DOWN)
        assert await client.answer(1) == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(between.host, between.port)
    await between.set_mode(proxy.Mode.FORWARD)
    async with connected(between) as client:
        assert await client.ask(b"again") == b"again"


async def test_target_that_is_gone_ends_the_connection(between: proxy.Proxy) -> None:
    """A client of a server that nobody can reach learns it."""
    between.retarget("127.0.0.1", 1)
    async with connected(between) as client:
        assert await client.ask(b"hello") == b""


async def test_new_target_gets_new_connections(between: proxy.Proxy) -> None:
    """After a change of target the old connections are cut, and the others go elsewhere."""
    async with connected(between) as client, Echo() as other:
        assert await client.ask(b"one") == b"one"
        between.retarget("127.0.0.1", other.port)
        assert await client.answer(1) == b""
        async with connected(between) as moved:
            assert await moved.ask(b"two") == b"two"
        assert other.got == b"two"


async def test_only_answers_to_marked_requests_are_lost(between: proxy.Proxy, echo: Echo) -> None:
    """The server gets the request, its client an end; other requests and later ones pass."""
    between.lose_answers(1, [b"commit"])
    async with connected(between) as reader, connected(between) as writer:
        assert await reader.ask(b"read") == b"read"
        assert await writer.ask(b"commit 1") == b""
        assert (between.dropped, between.to_lose) == (1, 0)
        assert bytes(echo.got) == b"readcommit 1"
    async with connected(between) as writer:
        assert await writer.ask(b"commit 2") == b"commit 2"


async def test_errors_are_no_lost_answers(between: proxy.Proxy) -> None:
    """An answer that says that nothing was done passes, and the next one is lost."""
    between.lose_answers(1, [b"commit"])
    async with connected(between) as client:
        assert await client.ask(b"-NOSCRIPT commit") == b"-NOSCRIPT commit"
        assert await client.ask(b"commit") == b""


async def test_cut_in_the_middle(between: proxy.Proxy, echo: Echo) -> None:
    """The server sees the first bytes of a request and then the end."""
    async with connected(between) as client:
        assert await client.ask(b"whole") == b"whole"
        between.cut(3)
        assert await client.ask(b"half of it") == b""

    async def arrived() -> bool:
        return bytes(echo.got) == b"wholehal"

    await eventually.assert_eventually(arrived)
