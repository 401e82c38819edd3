"""The caller's end of a lane: one connection to one process, many calls in flight on it."""

import asyncio
import hmac
import itertools
import os
from collections.abc import Callable
from typing import cast

from torpor import errors
from torpor.actors import lane_address, lane_frames, lane_keepalive, protocol

#: A process that is there accepts and answers within this also when it is busy; else Ray is asked.
OPEN_TIMEOUT_S = 1.0
#: Twice what a session's owner works on: whoever comes then would be refused there, too.
CALLS_MAX = 256
#: What an owner that reads nothing may leave unsent: also calls whose callers have given up are in
#: it, so `CALLS_MAX` does not bound it.
UNSENT_BYTES_MAX = 2 * lane_frames.CALL_BYTES_MAX


class Lane(asyncio.Protocol):
    """Calls to one process."""

    def __init__(self, name: str, on_end: Callable[["Lane"], None], calls_max: int) -> None:
        self._name = name
        self._calls_max = calls_max
        self._on_end = on_end
        self._reader = lane_frames.FrameReader(lane_frames.ANSWER_BYTES_MAX)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count()
        self._transport: asyncio.Transport

    @classmethod
    async def open(
        cls, seat: protocol.Seat, *, same_node: bool, on_end: Callable[["Lane"], None]
    ) -> "Lane":
        """Connect to an activation; see `connect`."""
        return await cls.connect(
            seat.owner.actor,
            seat.owner.lane,
            lane_frames.Secret(seat.key, seat.epoch, seat.nonce),
            same_node=same_node,
            on_end=on_end,
        )

    @classmethod
    async def connect(
        cls,
        actor: str,
        lane: str,
        secret: lane_frames.Secret,
        *,
        same_node: bool,
        on_end: Callable[["Lane"], None],
        calls_max: int = CALLS_MAX,
    ) -> "Lane":
        """Connect and prove which process is meant; `on_end` is called when it is over.

        Raises:
            OSError, TimeoutError, OwnerUnreachable, InvalidField: that process does not answer.
        """
        address = lane_address.LaneAddress.parse(lane)
        loop = asyncio.get_running_loop()
        made = cls(actor, on_end, calls_max)
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            if same_node and address.path:
                await loop.create_unix_connection(lambda: made, address.path)
            else:
                await loop.create_connection(lambda: made, address.host, address.port)
            try:
                hello = secret.hello(os.urandom(lane_frames.CHALLENGE_BYTES))
                said = await made.call(lane_frames.Kind.HELLO, hello, timeout_s=OPEN_TIMEOUT_S)
                if not hmac.compare_digest(said, secret.welcome(hello)):
                    # Whoever it is, what it says of the session counts for nothing.
                    raise errors.OwnerUnreachable("somebody else answers", actor=actor)
            except BaseException:
                made.close()
                raise
        return made

    @property
    def closed(self) -> bool:
        """Whether no call can be sent any more."""
        return self._transport.is_closing()

    @property
    def idle(self) -> bool:
        """Whether nothing is awaited."""
        return not self._waiting

    async def call(self, kind: lane_frames.Kind, payload: bytes, *, timeout_s: float) -> bytes:
        """Send a call, await its answer.

        Raises:
            MailboxFull: too many calls are in flight; nothing was sent.
            OwnerUnreachable: no answer came; whether it was carried out is not known.
        """
        if self.closed:
            raise self._broke()
        if len(self._waiting) >= self._calls_max:
            raise errors.MailboxFull(
                f"{self._calls_max} calls of this gateway wait for {self._name}"
            )
        if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            raise errors.MailboxFull(f"{self._name} does not read what it is sent")
        number = next(self._numbers) % (1 << 32)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._transport.write(lane_frames.pack(number, kind, payload))
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise errors.OwnerUnreachable(
                f"{self._name} did not answer within {timeout_s:.1f} s", actor=self._name
            ) from None
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """End the connection; whoever waits is told that no answer will come."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Notice a peer whose machine is gone."""
        self._transport = cast("asyncio.Transport", transport)
        lane_keepalive.watch(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Hand answers to those who wait; one that nobody waits for any more is dropped."""
        self._reader.feed(data)
        try:
            while (frame := self._reader.next()) is not None:
                waiting = self._waiting.pop(frame.call, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame.payload)
        except errors.MessageTooLarge:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(self._broke())
        self._waiting.clear()
        self._on_end(self)

    def _broke(self) -> errors.OwnerUnreachable:
        return errors.OwnerUnreachable(f"the connection to {self._name} broke", actor=self._name)
