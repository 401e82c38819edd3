"""Lanes between a gateway and a session's process, over real sockets."""

import asyncio
import pathlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torpor import errors
from torpor.actors import lane, lane_address, lane_frames, lane_keepalive, lane_server, protocol
from torpor.testing import eventually, lane_owner

DELIVER = lane_frames.Kind.DELIVER
HELLO = lane_owner.SECRET.hello(bytes(lane_frames.CHALLENGE_BYTES))


@pytest.fixture
async def owner() -> AsyncIterator[lane_owner.LaneOwner]:
    """A process that listens on both kinds of sockets."""
    async with lane_owner.listening() as made:
        yield made


@pytest.mark.parametrize("same_node", [True, False])
async def test_calls_are_pipelined_and_answered_in_any_order(
    owner: lane_owner.LaneOwner, *, same_node: bool
) -> None:
    """All of them arrive before the first is answered, and each gets its own answer."""
    for name in (b"one", b"two", b"three"):
        owner.gates[name] = asyncio.Event()
    way = await lane_owner.open_lane(owner, same_node=same_node)
    calls = {
        name: asyncio.create_task(way.call(DELIVER, name, timeout_s=30)) for name in owner.gates
    }
    await owner.has_been_sent(3)
    assert owner.served == [b"one", b"two", b"three"]
    for name in (b"three", b"one", b"two"):
        owner.gates[name].set()
        assert await calls[name] == name
    assert way.idle
    way.close()


async def test_both_ends_notice_a_machine_that_is_gone(owner: lane_owner.LaneOwner) -> None:
    """The kernel's own patience is two hours."""
    way = await lane_owner.open_lane(owner, same_node=False)
    (connection,) = owner.server.connections
    for transport in (way._transport, connection._transport):
        end = transport.get_extra_info("socket")
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        unheard_ms = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert unheard_ms == lane_keepalive.UNACKNOWLEDGED_MS
    way.close()


async def test_large_frames_pass(owner: lane_owner.LaneOwner) -> None:
    """The largest request that a gateway may have taken, in one piece."""
    way = await lane_owner.open_lane(owner)
    payload = bytes(lane_frames.CALL_BYTES_MAX)
    assert await way.call(DELIVER, payload, timeout_s=30) == payload
    way.close()


@pytest.mark.parametrize("proven", [False, True])
async def test_frames_that_are_too_large_end_the_connection(
    owner: lane_owner.LaneOwner, *, proven: bool
) -> None:
    """Before the proof no more than one is read; after it no more than a request."""
    reader, writer = await lane_owner.dial(owner)
    if proven:
        writer.write(lane_frames.pack(0, lane_frames.Kind.HELLO, HELLO))
    bytes_max = lane_frames.CALL_BYTES_MAX if proven else lane_frames.HELLO_BYTES
    writer.write(struct.pack("<IIB", bytes_max + 1, 1, DELIVER))
    await lane_owner.ended(reader)
    writer.close()


@pytest.mark.parametrize("kind", [lane_frames.Kind.HELLO, 99])
async def test_what_is_no_call_ends_the_connection(owner: lane_owner.LaneOwner, kind: int) -> None:
    """A second proof, and a kind that nobody knows."""
    reader, writer = await lane_owner.dial(owner)
    writer.write(lane_frames.pack(0, lane_frames.Kind.HELLO, HELLO))
    writer.write(lane_frames.pack(1, kind, HELLO))
    await lane_owner.ended(reader)
    writer.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(noise=st.binary(min_size=1, max_size=200), proven=st.booleans())
async def test_noise_harms_nobody_else(
    owner: lane_owner.LaneOwner, noise: bytes, *, proven: bool
) -> None:
    """Whatever a peer sends, the next one is served."""
    _, writer = await lane_owner.dial(owner)
    if proven:
        writer.write(lane_frames.pack(0, lane_frames.Kind.HELLO, HELLO))
    writer.write(noise)
    writer.close()
    way = await lane_owner.open_lane(owner)
    assert await way.call(DELIVER, b"hello", timeout_s=30) == b"hello"
    way.close()


async def test_a_silent_peer_is_sent_away(
    owner: lane_owner.LaneOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opens a connection and shows no proof does not keep it."""
    monkeypatch.setattr(lane_server, "HANDSHAKE_S", 0.01)
    reader, writer = await lane_owner.dial(owner)
    await lane_owner.ended(reader)
    writer.close()


async def test_another_users_process_is_sent_away(
    owner: lane_owner.LaneOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells who is behind a Unix socket."""
    monkeypatch.setattr("os.getuid", lambda: -1)
    with pytest.raises((errors.OwnerUnreachable, OSError)):
        await lane_owner.open_lane(owner)


async def test_calls_in_work_are_bounded(owner: lane_owner.LaneOwner) -> None:
    """What is beyond the bound is not read before something is answered."""
    owner.server.calls_max = 2
    names = [b"one", b"two", b"three"]
    owner.gates = {name: asyncio.Event() for name in names}
    way = await lane_owner.open_lane(owner)
    calls = [asyncio.create_task(way.call(DELIVER, name, timeout_s=30)) for name in names]
    await owner.has_been_sent(2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert owner.served == names[:2]
    owner.gates[b"one"].set()
    await calls[0]
    await owner.has_been_sent(3)
    for gate in owner.gates.values():
        gate.set()
    assert await asyncio.gather(*calls) == names
    way.close()


async def test_calls_that_wait_are_bounded(
    owner: lane_owner.LaneOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway learns at once that a session has too much to do."""
    owner.gates[b"one"] = asyncio.Event()
    way = await lane_owner.open_lane(owner)
    monkeypatch.setattr(way, "_calls_max", 1)
    first = asyncio.create_task(way.call(DELIVER, b"one", timeout_s=30))
    await owner.has_been_sent(1)
    with pytest.raises(errors.MailboxFull):
        await way.call(DELIVER, b"two", timeout_s=30)
    owner.gates[b"one"].set()
    assert await first == b"one"
    assert owner.served == [b"one"]
    way.close()


async def test_what_is_not_read_is_bounded(
    owner: lane_owner.LaneOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner that hangs does not fill the gateway's memory with calls that were given up."""
    monkeypatch.setattr(lane, "UNSENT_BYTES_MAX", 1 << 20)
    way = await lane_owner.open_lane(owner)
    (connection,) = owner.server.connections
    connection._transport.pause_reading()
    for _ in range(8):
        with pytest.raises((errors.OwnerUnreachable, errors.MailboxFull)) as caught:
            await way.call(DELIVER, bytes(1 << 20), timeout_s=0.0)
    assert caught.type is errors.MailboxFull
    assert way._transport.get_write_buffer_size() <= 3 << 20
    way.close()


async def test_a_connection_that_breaks_leaves_the_outcome_open(
    owner: lane_owner.LaneOwner,
) -> None:
    """Whoever waits is told at once, and nobody can call any more."""
    owner.gates[b"one"] = asyncio.Event()
    way = await lane_owner.open_lane(owner)
    call = asyncio.create_task(way.call(DELIVER, b"one", timeout_s=30))
    await owner.has_been_sent(1)
    owner.server.close()
    with pytest.raises(errors.OwnerUnreachable, match="broke"):
        await call
    assert way.closed
    with pytest.raises(errors.OwnerUnreachable):
        await way.call(DELIVER, b"two", timeout_s=30)
    owner.gates[b"one"].set()
    await eventually.until(lambda: not owner.server.tasks)


async def test_an_answer_that_comes_too_late_is_dropped(owner: lane_owner.LaneOwner) -> None:
    """Its caller was told that nothing is known; the next call gets its own answer."""
    owner.gates[b"slow"] = asyncio.Event()
    way = await lane_owner.open_lane(owner)
    with pytest.raises(errors.OwnerUnreachable, match="within"):
        await way.call(DELIVER, b"slow", timeout_s=0.0)
    await owner.has_been_sent(1)
    owner.gates[b"slow"].set()
    assert await way.call(DELIVER, b"next", timeout_s=30) == b"next"
    way.close()


async def test_a_failure_is_an_answer(owner: lane_owner.LaneOwner) -> None:
    """An error that nobody expected is said, and the lane goes on."""

    def fail(*_: object) -> bytes:
        raise RuntimeError

    owner.answer = fail
    way = await lane_owner.open_lane(owner)
    refused = protocol.unpack_done(await way.call(DELIVER, b"one", timeout_s=30))
    assert isinstance(refused, protocol.Refusal)
    assert refused.reason == errors.Internal.reason
    owner.answer = lambda _, payload: payload
    assert await way.call(DELIVER, b"hello", timeout_s=30) == b"hello"
    way.close()


@pytest.mark.parametrize(
    "said",
    [
        struct.pack("<IIB", lane_frames.ANSWER_BYTES_MAX + 1, 1, 0),
        lane_frames.pack(77, 0, b"to nobody"),
    ],
)
async def test_nothing_that_an_owner_says_harms_the_gateway(
    owner: lane_owner.LaneOwner, said: bytes
) -> None:
    """An answer beyond the bound ends the lane; one that nobody waits for is dropped."""
    owner.gates[b"one"] = asyncio.Event()
    way = await lane_owner.open_lane(owner)
    call = asyncio.create_task(way.call(DELIVER, b"one", timeout_s=30))
    await owner.has_been_sent(1)
    (connection,) = owner.server.connections
    connection._transport.write(said)
    owner.gates[b"one"].set()
    if len(said) == lane_frames.HEADER_BYTES:
        with pytest.raises(errors.OwnerUnreachable):
            await call
    else:
        assert await call == b"one"
    way.close()


async def test_an_answer_that_is_too_large_is_said_to_be(
    owner: lane_owner.LaneOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not cost its connection, which carries other calls."""
    way = await lane_owner.open_lane(owner)
    monkeypatch.setattr(lane_frames, "ANSWER_BYTES_MAX", 100)
    refused = protocol.unpack_done(await way.call(DELIVER, bytes(101), timeout_s=30))
    assert refused is not None
    assert refused.reason == errors.Internal.reason
    assert await way.call(DELIVER, bytes(100), timeout_s=30) == bytes(100)
    way.close()


async def test_answers_that_nobody_reads_stop_the_calls(owner: lane_owner.LaneOwner) -> None:
    """A peer that only writes fills its own buffers, not the session's memory."""
    _, writer = await lane_owner.dial(owner)
    peer = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(lane_frames.pack(0, lane_frames.Kind.HELLO, HELLO))
    many = 64
    for number in range(many):
        writer.write(lane_frames.pack(number, DELIVER, bytes(1 << 20)))
    await eventually.until(lambda: any(not each._writable for each in owner.server.connections))
    assert len(owner.served) < many
    writer.transport.abort()


async def test_a_socket_that_cannot_be_had_leaves_the_port(
    owner: lane_owner.LaneOwner, tmp_path: pathlib.Path
) -> None:
    """Without a folder for Unix sockets the process is reached by TCP alone."""
    (tmp_path / "lanes").write_text("in the way")
    other = lane_server.LaneServer(lane_owner.SECRET, owner.serve)
    assert "," not in await other.listen("127.0.0.1", tmp_path / "lanes")
    other.close()


async def test_the_head_keeps_its_small_form(
    owner: lane_owner.LaneOwner, tmp_path: pathlib.Path
) -> None:
    """A path that would make the address too long for the head is left out."""
    other = lane_server.LaneServer(lane_owner.SECRET, owner.serve)
    assert "," not in await other.listen("127.0.0.1", tmp_path / ("x" * 40))
    assert len(owner.address) <= lane_address.TEXT_BYTES_MAX
    other.close()


async def test_the_end_leaves_nothing(owner: lane_owner.LaneOwner) -> None:
    """The Unix socket goes with the process that made it."""
    path = lane_address.LaneAddress.parse(owner.address).path
    with socket.socket(socket.AF_UNIX) as knocking:
        knocking.connect(path)
    owner.server.close()
    with socket.socket(socket.AF_UNIX) as knocking, pytest.raises(FileNotFoundError):
        knocking.connect(path)
