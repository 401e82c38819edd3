"""The called end of lanes: sockets of a session's process, or of a node's agent."""

import asyncio
import contextlib
import logging
import os
import pathlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, cast

from torpor import errors
from torpor.actors import lane_address, lane_frames, lane_keepalive, protocol

log = logging.getLogger(__name__)

#: Answers a call: its kind, its payload → the answer's payload.
Serve = Callable[[lane_frames.Kind, bytes], Awaitable[bytes]]

#: Whoever opens a lane shows its proof within this, or is sent away.
HANDSHAKE_S = 2.0
#: One for each gateway, and some that are just being opened.
CONNECTIONS_MAX = 256
#: Calls in work for one connection to a session: a full mailbox, and those that never wait in it.
#: More are not read before some are answered.
CALLS_MAX = 128

#: Hellos that one activation takes, or a node's agent in one term, of 48 bytes each; gateways say
#: one for each connection, which they keep. Beyond it they call through Ray.
HELLOS_MAX = 4_096

_CREDENTIALS = struct.Struct("3i")


class LaneServer:
    """Listens for one process. `secret` is what both ends have to know; more may come.

    `calls_max` are the calls in work for one connection.
    """

    def __init__(
        self, secret: lane_frames.Secret, serve: Serve, *, calls_max: int = CALLS_MAX
    ) -> None:
        self.secrets = [secret]
        self.serve = serve
        self.calls_max = calls_max
        self.connections: set[_Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._heard: set[bytes] = set()
        self._listening: list[asyncio.Server] = []
        self._path: pathlib.Path | None = None

    async def listen(self, host: str, folder: pathlib.Path) -> str:
        """Listen at a port of `host` and on a Unix socket in `folder`; returns the address.

        Without the Unix socket, if there cannot be one.

        Raises:
            OSError: no port can be had.
        """
        loop = asyncio.get_running_loop()
        made = await loop.create_server(self._connection, host, 0)
        self._listening.append(made)
        port = made.sockets[0].getsockname()[1]
        address = lane_address.LaneAddress(host=host, port=port)
        try:
            path = lane_address.socket_path(folder, os.urandom(2).hex())
            both = lane_address.LaneAddress(host=host, port=port, path=str(path))
            if len(str(both).encode()) > lane_address.TEXT_BYTES_MAX:
                return str(address)
            self._listening.append(await loop.create_unix_server(self._connection, path))
        except OSError as error:
            log.warning("no Unix socket: %s", error, extra={"action": "no_unix_socket"})
            return str(address)
        self._path = path
        return str(both)

    def close(self) -> None:
        """Listen no more and let connections go once what is written has left."""
        for each in self._listening:
            each.close()
        self._listening.clear()
        for connection in list(self.connections):
            connection.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._path = None

    def welcome(self, hello: bytes) -> bytes | None:
        """Return the answer to a hello; None if it proves nothing, or was heard before.

        Who listens on the wire may repeat a hello, but must not get in with it.
        """
        secret = next((each for each in self.secrets if each.greets(hello)), None)
        if secret is None or hello in self._heard or len(self._heard) >= HELLOS_MAX:
            return None
        self._heard.add(hello)
        if len(self._heard) == HELLOS_MAX:
            log.warning("nobody new by lane: %d came", HELLOS_MAX, extra={"action": "lane_closed"})
        return secret.welcome(hello)

    def renew(self, secret: lane_frames.Secret) -> None:
        """Let those in who know the new secret, and nobody else any more."""
        self.secrets = [secret]
        # Of no use any more.
        self._heard.clear()
        for connection in list(self.connections):
            connection.close()

    def _connection(self) -> "_Connection":
        return _Connection(self)


class _Connection(asyncio.Protocol):
    """One caller's lane."""

    def __init__(self, server: LaneServer) -> None:
        self._server = server
        self._reader = lane_frames.FrameReader(lane_frames.HELLO_BYTES)
        self._proven = False
        self._writable = True
        self._in_work = 0
        self._transport: asyncio.Transport
        self._handshake: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let only peers of this user in, and not too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._handshake = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._transport.abort)
        peer = transport.get_extra_info("socket")
        if len(self._server.connections) >= CONNECTIONS_MAX or not _is_ours(peer):
            self._transport.abort()
            return
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget it; calls in work go on, and nobody hears their answer."""
        self._handshake.cancel()
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Take calls."""
        self._reader.feed(data)
        self._take()

    def pause_writing(self) -> None:
        """Take no more calls while their answers are not read."""
        self._writable = False

    def resume_writing(self) -> None:
        """Take calls again."""
        self._writable = True
        self._take()

    def close(self) -> None:
        """Close once what is written has left."""
        self._transport.close()

    def _take(self) -> None:
        try:
            while self._open() and (frame := self._reader.next()) is not None:
                if self._proven:
                    self._begin(frame)
                else:
                    self._greet(frame)
        except (errors.MessageTooLarge, ValueError) as error:
            log.warning("not a lane's frame: %s", error, extra={"action": "lane_aborted"})
            self._transport.abort()
        if self._transport.is_closing():
            return
        if self._open():
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _open(self) -> bool:
        return (
            self._writable
            and self._in_work < self._server.calls_max
            and not self._transport.is_closing()
        )

    def _greet(self, frame: lane_frames.Frame) -> None:
        is_hello = frame.kind == lane_frames.Kind.HELLO
        welcome = self._server.welcome(frame.payload) if is_hello else None
        if welcome is None:
            self._transport.abort()
            return
        self._handshake.cancel()
        self._proven = True
        self._reader.payload_bytes_max = lane_frames.CALL_BYTES_MAX
        self._write(frame.call, welcome)

    def _begin(self, frame: lane_frames.Frame) -> None:
        kind = lane_frames.Kind(frame.kind)
        if kind is lane_frames.Kind.HELLO:
            raise ValueError("a second proof")
        work = self._answer(frame.call, kind, frame.payload)
        self._in_work += 1
        task = asyncio.get_running_loop().create_task(work)
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    async def _answer(self, call: int, kind: lane_frames.Kind, payload: bytes) -> None:
        try:
            answer = await self._server.serve(kind, payload)
            if len(answer) > lane_frames.ANSWER_BYTES_MAX:
                raise errors.MessageTooLarge(f"an answer of {len(answer)} bytes")
        except Exception:
            log.exception("a call failed", extra={"action": "lane_call_failed"})
            answer = protocol.pack(protocol.refuse(errors.Internal()))
        finally:
            self._in_work -= 1
        self._write(call, answer)
        self._take()

    def _write(self, call: int, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(lane_frames.pack(call, 0, answer))


def _is_ours(peer: Any) -> bool:
    """Whether the process behind a Unix socket is of this user; of TCP the proof has to tell."""
    if peer.family != socket.AF_UNIX:
        lane_keepalive.watch(peer)
        return True
    said = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(said)[1] == os.getuid())
