"""Calls over lanes, and over others where there is no lane."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from torpor import errors, messages
from torpor.actors import lane, lane_calls, lane_frames, protocol
from torpor.testing import eventually, in_process_cluster, lane_owner

HERE = protocol.Delivered(text="by lane", data={}, seq=1, version=1)
DELIVER = protocol.Deliver(
    epoch=lane_owner.EPOCH,
    message=messages.Message(text="hello", request_id="r"),
    body_digest="d",
    busy=protocol.BusyPolicy.ENQUEUE,
    deadline_s=60.0,
)
CONTROL = protocol.Control(
    epoch=lane_owner.EPOCH, verb=protocol.Verb.EVICT, request_id="r", deadline_s=60.0
)
PLACE = protocol.PlaceFile(
    epoch=lane_owner.EPOCH,
    path="a",
    digest="d",
    size_bytes=1,
    mode=0o644,
    request_id="r",
    deadline_s=60.0,
)
ANSWERS = {
    lane_frames.Kind.DELIVER: HERE,
    lane_frames.Kind.CONTROL: protocol.Controlled(version=2),
    lane_frames.Kind.PLACE_FILE: protocol.Placed(version=3),
    lane_frames.Kind.DRAIN_INBOX: None,
}


class Others(in_process_cluster.InProcessCluster):
    """The way without lanes: says that it was taken."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    async def deliver(self, *_: object, **__: object) -> protocol.Delivered:
        """Say so."""
        self.taken.append("deliver")
        return protocol.Delivered(text="by others", data={}, seq=1, version=1)

    async def control(self, *_: object, **__: object) -> protocol.Controlled:
        """Say so."""
        self.taken.append("control")
        return protocol.Controlled(version=0)

    async def place_file(self, *_: object, **__: object) -> protocol.Placed:
        """Say so."""
        self.taken.append("place_file")
        return protocol.Placed(version=0)

    async def drain_inbox(self, *_: object, **__: object) -> None:
        """Say so."""
        self.taken.append("drain_inbox")


@pytest.fixture
async def owner() -> AsyncIterator[lane_owner.LaneOwner]:
    """A process that answers every kind of call."""
    async with lane_owner.listening() as made:
        made.answer = lambda kind, _: protocol.pack(ANSWERS[kind])
        yield made


@pytest.fixture
def others() -> Others:
    """The way without lanes."""
    return Others()


@pytest.fixture
async def reach(others: Others) -> AsyncIterator[lane_calls.LaneCalls]:
    """A gateway's calls, on the owner's node."""
    made = lane_calls.LaneCalls(others, lane_owner.NODE)
    yield made
    made.close()


async def deliver(reach: lane_calls.LaneCalls, seat: protocol.Seat) -> str:
    """Return which way a message took."""
    return (await reach.deliver(seat, DELIVER, timeout_s=30)).text


async def call_each(reach: lane_calls.LaneCalls, seat: protocol.Seat) -> list[Any]:
    """Return the answer of each kind of call."""
    return [
        await reach.deliver(seat, DELIVER, timeout_s=30),
        await reach.control(seat, CONTROL, timeout_s=30),
        await reach.place_file(seat, PLACE, timeout_s=30),
        await reach.drain_inbox(seat, timeout_s=30),
    ]


@pytest.mark.parametrize("node", [lane_owner.NODE, "node-2"])
async def test_an_owner_with_a_lane_is_called_by_it(
    owner: lane_owner.LaneOwner, others: Others, reach: lane_calls.LaneCalls, node: str
) -> None:
    """Every kind of call, on one connection, to this node and to others."""
    assert await call_each(reach, owner.seat(node=node)) == list(ANSWERS.values())
    assert others.taken == []
    assert [protocol.unpack_deliver(owner.served[0]), protocol.unpack_epoch(owner.served[3])] == [
        DELIVER,
        lane_owner.EPOCH,
    ]
    assert len(owner.server.connections) == 1


@pytest.mark.parametrize("lane", ["", "nonsense", "127.0.0.1:9,/nowhere/x.sock"])
async def test_an_owner_without_a_lane_is_called_by_others(
    owner: lane_owner.LaneOwner, others: Others, reach: lane_calls.LaneCalls, lane: str
) -> None:
    """It has none, or none that can be opened: nothing was sent, so the other way is safe."""
    await call_each(reach, owner.seat(lane=lane))
    assert others.taken == ["deliver", "control", "place_file", "drain_inbox"]
    assert owner.served == []


async def test_refusals_are_raised(
    owner: lane_owner.LaneOwner, reach: lane_calls.LaneCalls
) -> None:
    """They travel as values, and come out as the errors that they are."""
    owner.answer = lambda *_: protocol.pack(protocol.refuse(errors.SessionPaused(session="s1")))
    with pytest.raises(errors.SessionPaused) as caught:
        await deliver(reach, owner.seat())
    assert caught.value.ids == {"session": "s1"}
    owner.answer = lambda *_: b"\xc1"
    with pytest.raises(errors.Internal):
        await deliver(reach, owner.seat())


async def test_a_stale_route_is_left_to_the_others(
    owner: lane_owner.LaneOwner, others: Others, reach: lane_calls.LaneCalls
) -> None:
    """Another activation listens there by now: what became of the one meant, Ray knows."""
    assert await deliver(reach, owner.seat(nonce="other")) == "by others"
    assert owner.served == []


async def test_a_lane_that_ended_as_it_was_opened_is_none(
    owner: lane_owner.LaneOwner, reach: lane_calls.LaneCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent on it, so the call may take the other way."""
    opened = lane.Lane.open

    async def end_at_once(*args: Any, **fields: Any) -> lane.Lane:
        made = await opened(*args, **fields)
        made.close()
        return made

    monkeypatch.setattr(lane.Lane, "open", end_at_once)
    assert await deliver(reach, owner.seat()) == "by others"


async def test_what_was_sent_is_not_sent_again(
    owner: lane_owner.LaneOwner, others: Others, reach: lane_calls.LaneCalls
) -> None:
    """The connection breaks under a call: only the router may ask again, knowing what it does."""
    packed = protocol.pack(DELIVER)
    owner.gates[packed] = asyncio.Event()
    call = asyncio.create_task(deliver(reach, owner.seat()))
    await owner.has_been_sent(1)
    owner.server.close()
    with pytest.raises(errors.OwnerUnreachable):
        await call
    assert (owner.served, others.taken) == ([packed], [])
    assert await deliver(reach, owner.seat()) == "by others"
    owner.gates[packed].set()


async def test_the_end_of_a_process_is_told(owner: lane_owner.LaneOwner, others: Others) -> None:
    """What it was called by is of no use any more; a connection closed here says nothing."""
    ended: list[protocol.Seat] = []
    reach = lane_calls.LaneCalls(others, lane_owner.NODE, on_end=ended.append)
    seat = owner.seat()
    await deliver(reach, seat)
    owner.server.close()
    await eventually.until(lambda: ended)
    assert ended == [seat]
    async with lane_owner.listening() as other:
        other.answer = owner.answer
        assert await deliver(reach, other.seat()) == "by lane"
        reach.close()
        await eventually.until(lambda: not other.server.connections)
    assert ended == [seat]


async def test_a_connection_is_opened_once(
    owner: lane_owner.LaneOwner, reach: lane_calls.LaneCalls
) -> None:
    """Many callers at once share it; the first of them leaving ends nothing."""
    first = asyncio.create_task(deliver(reach, owner.seat()))
    rest = [asyncio.create_task(deliver(reach, owner.seat())) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.gather(*rest) == ["by lane"] * 20
    assert len(owner.server.connections) == 1


async def test_where_no_lane_opens_none_is_tried_for_a_while(
    owner: lane_owner.LaneOwner,
    others: Others,
    reach: lane_calls.LaneCalls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An attempt may cost a second; it is made again later."""
    there = owner.seat()
    assert await deliver(reach, owner.seat(lane="127.0.0.1:9")) == "by others"
    assert await deliver(reach, there) == "by others"
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 1e12)
    assert await deliver(reach, there) == "by lane"


async def test_connections_kept_are_bounded(others: Others) -> None:
    """The one that nobody uses goes first; with none to spare, calls take the other way."""
    reach = lane_calls.LaneCalls(others, lane_owner.NODE, lanes_max=1)
    async with lane_owner.listening() as first, lane_owner.listening() as second:
        second.server.secrets = [lane_frames.Secret(lane_owner.KEY, lane_owner.EPOCH, "second")]
        for each in (first, second):
            each.answer = lambda *_: protocol.pack(HERE)
        assert await deliver(reach, first.seat()) == "by lane"
        assert await deliver(reach, second.seat(nonce="second")) == "by lane"
        await eventually.until(lambda: not first.server.connections)
        packed = protocol.pack(DELIVER)
        second.gates[packed] = asyncio.Event()
        busy = asyncio.create_task(deliver(reach, second.seat(nonce="second")))
        await second.has_been_sent(2)
        assert await deliver(reach, first.seat()) == "by others"
        second.gates[packed].set()
        assert await busy == "by lane"
        reach.close()
