"""A session's process at the end of its lane, in this process."""

import asyncio
import contextlib
import pathlib
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

from torpor.actors import lane, lane_address, lane_frames, lane_server, protocol
from torpor.storage import records
from torpor.testing import eventually

KEY = records.SessionKey("acme", "s1")
EPOCH = 3
NONCE = "nonce"
NODE = "node-1"
SECRET = lane_frames.Secret(KEY, EPOCH, NONCE)

Serve = Callable[[lane_frames.Kind, bytes], bytes]


class LaneOwner:
    """Answers what it is sent: with the same, unless `answer` says otherwise."""

    def __init__(self) -> None:
        self.server = lane_server.LaneServer(SECRET, self.serve)
        self.address = ""
        self.answer: Serve = lambda _, payload: payload
        #: What it was sent, in order.
        self.served: list[bytes] = []
        #: Payloads that are answered only once their gate is open.
        self.gates: dict[bytes, asyncio.Event] = {}

    async def serve(self, kind: lane_frames.Kind, payload: bytes) -> bytes:
        """Answer one call."""
        self.served.append(payload)
        if payload in self.gates:
            await self.gates[payload].wait()
        return self.answer(kind, payload)

    def seat(self, **changes: Any) -> protocol.Seat:
        """Return the activation as heads name it, with changes."""
        lane = changes.pop("lane", self.address)
        node = changes.pop("node", NODE)
        owner = records.Owner(node=node, incarnation="i", actor="a", lane=lane)
        known: dict[str, Any] = {"key": KEY, "epoch": EPOCH, "nonce": NONCE, "owner": owner}
        return protocol.Seat(**(known | changes))

    async def has_been_sent(self, count: int) -> None:
        """Wait until so many calls have arrived."""
        await eventually.until(lambda: len(self.served) >= count)


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[LaneOwner]:
    """Run the body beside an owner that listens on both kinds of sockets."""
    # Paths of Unix sockets are short.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        made = LaneOwner()
        made.address = await made.server.listen("127.0.0.1", pathlib.Path(folder, "lanes"))
        try:
            yield made
        finally:
            made.server.close()
            # Its connections end in the loop's next rounds.
            await eventually.until(lambda: not made.server.connections)


async def open_lane(owner: LaneOwner, *, same_node: bool = True) -> lane.Lane:
    """Return a lane to it."""
    return await lane.Lane.open(owner.seat(), same_node=same_node, on_end=lambda _: None)


async def dial(
    owner: LaneOwner,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a bare connection to it."""
    address = lane_address.LaneAddress.parse(owner.address)
    return await asyncio.open_connection(address.host, address.port)


async def ended(reader: asyncio.StreamReader) -> None:
    """Read until the other side ends the connection, in whatever way."""
    try:
        await reader.read()
    except ConnectionResetError:
        return
