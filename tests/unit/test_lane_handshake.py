"""A lane is opened by a proof of the activation that is meant, from both ends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from torpor import errors
from torpor.actors import lane, lane_frames, lane_server, protocol
from torpor.storage import records
from torpor.testing import lane_owner

DELIVER = lane_frames.Kind.DELIVER
HELLO = lane_owner.SECRET.hello(bytes(lane_frames.CHALLENGE_BYTES))


@pytest.fixture
async def owner() -> AsyncIterator[lane_owner.LaneOwner]:
    """A process that listens on both kinds of sockets."""
    async with lane_owner.listening() as made:
        yield made


@pytest.mark.parametrize(
    "changes",
    [{"nonce": "other"}, {"epoch": 2}, {"epoch": 4}, {"key": records.SessionKey("acme", "s2")}],
)
async def test_a_stale_route_fails_before_a_message_is_sent(
    owner: lane_owner.LaneOwner, changes: dict[str, Any]
) -> None:
    """Another session, epoch or nonce gets no lane; what became of it is not asked here."""
    with pytest.raises((errors.OwnerUnreachable, OSError)):
        await lane.Lane.open(owner.seat(**changes), same_node=True, on_end=lambda _: None)
    assert owner.served == []


async def test_nobody_is_served_before_the_proof(owner: lane_owner.LaneOwner) -> None:
    """A call that comes first ends the connection, whatever is in it."""
    reader, writer = await lane_owner.dial(owner)
    writer.write(lane_frames.pack(7, DELIVER, HELLO))
    await lane_owner.ended(reader)
    assert owner.served == []
    writer.close()


async def test_a_hello_that_was_heard_before_opens_nothing(owner: lane_owner.LaneOwner) -> None:
    """Who listened on the wire does not get in with what others said."""
    hello = lane_frames.pack(0, lane_frames.Kind.HELLO, HELLO)
    first_reader, first = await lane_owner.dial(owner)
    first.write(hello)
    await first_reader.readexactly(lane_frames.HEADER_BYTES)
    reader, writer = await lane_owner.dial(owner)
    writer.write(hello + lane_frames.pack(1, DELIVER, b"again"))
    await lane_owner.ended(reader)
    assert owner.served == []
    first.close()
    writer.close()


@pytest.mark.parametrize("bound", ["CONNECTIONS_MAX", "HELLOS_MAX"])
async def test_connections_and_hellos_are_bounded(
    owner: lane_owner.LaneOwner, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """One more than a process takes is sent away, and takes nothing from the others."""
    monkeypatch.setattr(lane_server, bound, 1)
    way = await lane_owner.open_lane(owner)
    with pytest.raises((errors.OwnerUnreachable, OSError)):
        await lane_owner.open_lane(owner)
    assert await way.call(DELIVER, b"hello", timeout_s=30) == b"hello"
    way.close()


async def test_nobody_is_served_while_the_process_is_nobodys(owner: lane_owner.LaneOwner) -> None:
    """A process in stock listens, and lets nobody in but its maker."""
    owner.server.secrets = [lane_frames.Secret("slot", 0, "maker")]
    with pytest.raises((errors.OwnerUnreachable, OSError)):
        await lane_owner.open_lane(owner)


@pytest.mark.parametrize(
    "welcome",
    [
        protocol.pack(None),
        protocol.pack(protocol.refuse(errors.Fenced())),
        lane_owner.SECRET.welcome(HELLO),
        b"",
    ],
)
async def test_who_cannot_prove_to_be_the_owner_is_not_believed(
    owner: lane_owner.LaneOwner, welcome: bytes
) -> None:
    """Somebody else holds the port: what it says, or has heard before, opens no lane."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(lane_frames.HEADER_BYTES + lane_frames.HELLO_BYTES)
        writer.write(lane_frames.pack(0, 0, welcome))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as impostor:
        port = impostor.sockets[0].getsockname()[1]
        with pytest.raises(errors.OwnerUnreachable, match="somebody else"):
            await lane.Lane.open(
                owner.seat(lane=f"127.0.0.1:{port}"), same_node=False, on_end=lambda _: None
            )
