"""The witness agent, and the client that records what it is told of it."""

import asyncio
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import torpor
from torpor import client, errors, messages
from torpor.testing import recording, scripted_gateway, witness, witness_client
from torpor.testing.context import FakeContext
from torpor.testing.recording import Ending, Kind
from torpor.v1 import common_pb2, sessions_pb2

UNAVAILABLE = errors.StoreUnavailable()


async def _turn(
    agent: witness.Witness,
    folder: pathlib.Path,
    events: list[messages.Event],
    text: str,
    **data: Any,
) -> dict[str, Any]:
    """Run a turn and commit what it emitted to `events`."""
    ctx = FakeContext(folder, committed=events)
    reply = await agent.on_message(ctx, torpor.Message(text=text, data=data))
    for kind, emitted in ctx.emitted:
        seq = len(events) + 1
        events.append(messages.Event(seq=seq, type=kind, data=emitted, version=seq, at_ms=0))
    assert isinstance(reply, torpor.Reply)
    return reply.data


async def test_witness_holds_tokens_three_times(tmp_path: pathlib.Path) -> None:
    """State, file and history agree after each turn; a read changes none of them."""
    agent, events = witness.Witness(), list[messages.Event]()
    for n, tokens in enumerate((["a"], ["a", "b"]), 1):
        said = await _turn(agent, tmp_path, events, f"append {tokens[-1]}")
        chain = witness.chain_of(tokens)
        assert said == {"n": n, "chain": chain, "state_n": n, "state_chain": chain} | {
            "file_n": n,
            "file_chain": chain,
        }
    assert await _turn(agent, tmp_path, events, "read") == said
    assert [event.data["token"] for event in events] == ["a", "b"]


async def test_witness_tells_when_parts_disagree(tmp_path: pathlib.Path) -> None:
    """An agent whose state is older than history and files says so."""
    agent, events = witness.Witness(), list[messages.Event]()
    await _turn(agent, tmp_path, events, "append a")
    said = await _turn(witness.Witness(), tmp_path, events, "append b")
    assert (said["n"], said["file_n"], said["state_n"]) == (2, 2, 1)
    assert said["chain"] == said["file_chain"] != said["state_chain"]


async def test_witness_finds_its_newest_token_behind_other_events(tmp_path: pathlib.Path) -> None:
    """Many turns that append nothing do not hide how many tokens the history holds."""
    agent, events = witness.Witness(), list[messages.Event]()
    await _turn(agent, tmp_path, events, "append a")
    for seq in range(2, 2 * witness.NEAR_EVENTS):
        events.append(messages.Event(seq=seq, type="app.note", data={}, version=seq, at_ms=0))
    assert (await _turn(agent, tmp_path, events, "append b"))["n"] == 2


async def test_witness_makes_blobs_and_waits(tmp_path: pathlib.Path) -> None:
    """It writes as much as it is asked to, and holds its turn until a file is there."""
    agent, go = witness.Witness(), tmp_path / "go"
    turn = asyncio.create_task(_turn(agent, tmp_path, [], "read", blob=2, wait=str(go)))
    await asyncio.sleep(0)
    assert not turn.done()
    go.touch()
    await turn
    assert len(agent.ballast) == (tmp_path / witness.BALLAST_FILE).stat().st_size == 2048


async def test_witness_tells_when_its_ballast_is_not_what_it_wrote(tmp_path: pathlib.Path) -> None:
    """A bit flipped beside the tokens, or a file cut off, shows in the next reply."""
    agent, events = witness.Witness(), list[messages.Event]()
    said = await _turn(agent, tmp_path, events, "append a", blob=1)
    assert await _turn(agent, tmp_path, events, "read") == said
    file = tmp_path / witness.BALLAST_FILE
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
        file.write_bytes(damaged)
        told = await _turn(agent, tmp_path, events, "read")
        assert told == said | {"file_chain": witness.DAMAGED}
    file.unlink()
    agent.ballast = agent.ballast[:-1] + bytes([agent.ballast[-1] ^ 1])
    told = await _turn(agent, tmp_path, events, "read")
    assert told == said | {"state_chain": witness.DAMAGED}


# --- the client -----------------------------------------------------------------------------------


@pytest.fixture
async def gateways() -> AsyncIterator[list[scripted_gateway.ScriptedGateway]]:
    """Two gateways that answer as they are told."""
    made = [await scripted_gateway.ScriptedGateway().start() for _ in range(2)]
    yield made
    for gateway in made:
        await gateway.stop()


@pytest.fixture
async def red(
    gateways: list[scripted_gateway.ScriptedGateway],
) -> AsyncIterator[witness_client.Client]:
    """A client of both that does not wait between attempts."""
    async with witness_client.Client(
        tenant="red",
        gateways=[gateway.address for gateway in gateways],
        recorder=recording.Recorder(),
        policy=client.Policy(attempts_max=3, first_s=0.0),
    ) as made:
        yield made


def _script(gateways: list[scripted_gateway.ScriptedGateway], method: str, *answers: Any) -> None:
    shared = list(answers)
    for gateway in gateways:
        gateway.script[method] = shared


def _reply(**fields: Any) -> sessions_pb2.SendMessageResponse:
    data = {"n": 1, "chain": "c", "state_n": 1, "state_chain": "c", "file_n": 1, "file_chain": "c"}
    return sessions_pb2.SendMessageResponse(
        data_json=msgspec.json.encode(data).decode(), seq=4, version=2, **fields
    )


async def test_attempts_carry_one_request(
    gateways: list[scripted_gateway.ScriptedGateway], red: witness_client.Client
) -> None:
    """An append is tried again with its request id and token until it is answered."""
    _script(gateways, "SendMessage", UNAVAILABLE, errors.MailboxFull(), _reply(repeated=True))
    done = await red.append("s1")
    assert (done.ending, done.attempts, done.reason) == (Ending.OK, 3, "")
    assert done.reply == recording.Reply(
        n=1,
        chain="c",
        state_n=1,
        state_chain="c",
        file_n=1,
        file_chain="c",
        seq=4,
        version=2,
        repeated=True,
    )
    asked = [request for gateway in gateways for request in gateway.of("SendMessage")]
    assert {(one.request_id, one.text) for one in asked} == {
        (done.request_id, f"append {done.token}")
    }


@pytest.mark.parametrize(
    ("answers", "ending"),
    [
        # Nothing was done, by any attempt.
        ([errors.SessionNotFound()], Ending.FAIL),
        ([errors.MailboxFull()], Ending.FAIL),
        ([errors.MailboxFull(), errors.SessionPaused()], Ending.FAIL),
        # The first attempt may have been.
        ([UNAVAILABLE, errors.SessionPaused()], Ending.UNKNOWN),
        ([UNAVAILABLE], Ending.UNKNOWN),
        ([errors.CheckpointCorrupt()], Ending.UNKNOWN),
        # Whoever gave up does not say what the dead had done.
        ([errors.MessageGivenUp()], Ending.UNKNOWN),
    ],
)
async def test_only_what_is_certain_is_a_failure(
    gateways: list[scripted_gateway.ScriptedGateway],
    red: witness_client.Client,
    answers: list[Any],
    ending: Ending,
) -> None:
    """An operation fails only if no attempt of it can have had an effect."""
    _script(gateways, "SendMessage", *answers)
    done = await red.append("s1")
    assert done.ending is ending
    assert done.reason == answers[-1].reason


async def test_committed_failure_is_certain(
    gateways: list[scripted_gateway.ScriptedGateway], red: witness_client.Client
) -> None:
    """A turn that failed and was committed so has no other outcome, whatever came before."""
    failed = _reply(
        stop_reason=sessions_pb2.STOP_REASON_ERROR, error_reason="TURN_TIMED_OUT", error_message="x"
    )
    _script(gateways, "SendMessage", UNAVAILABLE, failed)
    done = await red.append("s1")
    assert (done.ending, done.reason) == (Ending.FAIL, "TURN_TIMED_OUT")


async def test_operation_that_is_broken_off_is_unknown(
    gateways: list[scripted_gateway.ScriptedGateway], red: witness_client.Client
) -> None:
    """A client that is cancelled amid an attempt does not know what became of it."""
    _script(gateways, "SendMessage", UNAVAILABLE)
    append = asyncio.create_task(red.append("s1"))
    await asyncio.sleep(0)
    assert red._recorder.under_way
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    assert [one.ending for one in red._recorder.operations] == [Ending.UNKNOWN]


async def test_client_asks_for_what_it_has_seen(
    gateways: list[scripted_gateway.ScriptedGateway], red: witness_client.Client
) -> None:
    """A version that was seen is asked for; once it is said to be lost, no more."""
    _script(gateways, "SendMessage", _reply(), errors.VersionsLost(version=1), _reply())
    for _ in range(3):
        await red.append("s1")
    lost = red._recorder.operations[1]
    assert (lost.ending, lost.min_version, lost.reply) == (
        Ending.UNKNOWN,
        2,
        recording.Reply(version=1),
    )
    asked = [request.min_version for one in gateways for request in one.of("SendMessage")]
    assert sorted(asked) == [0, 1, 2]


async def test_looks_are_recorded(
    gateways: list[scripted_gateway.ScriptedGateway], red: witness_client.Client
) -> None:
    """What a client saw of the history and of the head is there to be compared."""
    data = msgspec.json.encode({"token": "a", "n": 1, "chain": "c"}).decode()
    event = common_pb2.Event(seq=3, type=witness.TOKEN, data_json=data, version=2)
    _script(gateways, "ListEvents", sessions_pb2.ListEventsResponse(events=[event]))
    session = sessions_pb2.Session(id="s1", version=5, last_seq=9)
    _script(gateways, "GetSession", sessions_pb2.GetSessionResponse(session=session))
    _script(gateways, "PauseSession", sessions_pb2.PauseSessionResponse(session=session))
    events, got, paused = await red.events("s1"), await red.get("s1"), await red.pause("s1")
    (seen,) = events.seen
    assert (seen.token, seen.chain) == ("a", "c")
    assert events.reply == recording.Reply(seq=3, version=2)
    assert got.reply == paused.reply == recording.Reply(seq=9, version=5)
    reading = await red.read_back("s1")
    assert [event.seq for event in reading.events] == [3]


@pytest.mark.parametrize(
    ("answer", "ending", "reason"),
    [
        (errors.SessionNotFound(), Ending.FAIL, "SESSION_NOT_FOUND"),
        (errors.OperatorOnly(), Ending.FAIL, "OPERATOR_ONLY"),
        (UNAVAILABLE, Ending.UNKNOWN, "STORE_UNAVAILABLE"),
        (sessions_pb2.GetSessionResponse(), Ending.OK, ""),
    ],
)
async def test_foreign_sessions_are_tried(
    gateways: list[scripted_gateway.ScriptedGateway],
    red: witness_client.Client,
    answer: Any,
    ending: Ending,
    reason: str,
) -> None:
    """Every way into another tenant's session is tried; the worst answer counts."""
    for method in ("ListEvents", "SendMessage"):
        _script(gateways, method, errors.SessionNotFound())
    _script(gateways, "GetSession", answer)
    done = await red.foreign("theirs")
    assert (done.kind, done.ending, done.reason) == (Kind.FOREIGN, ending, reason)
