"""The async client against a gateway of scripted answers."""

import asyncio
import os
import pathlib
from collections.abc import AsyncIterator

import pytest

import torpor
from torpor import client, errors, limits, messages, status
from torpor.client import retry, watching
from torpor.testing.scripted_gateway import ScriptedGateway
from torpor.v1 import (
    admin_pb2,
    agents_pb2,
    common_pb2,
    sessions_pb2,
    workspaces_pb2,
)

QUICK = retry.Policy(first_s=0.001, most_s=0.002)


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    """A gateway on a free port."""
    running = await ScriptedGateway().start()
    yield running
    await running.stop()


@pytest.fixture
async def connected(gateway: ScriptedGateway) -> AsyncIterator[client.Client]:
    """A client of that gateway which does not wait long between tries."""
    async with client.connect(
        gateway.address, api_key="tp_x", tenant="acme", policy=QUICK
    ) as connected:
        yield connected


def done(text: str = "42", **fields: int | bool) -> sessions_pb2.SendMessageResponse:
    """A turn that ended well."""
    return sessions_pb2.SendMessageResponse(
        text=text, stop_reason=sessions_pb2.STOP_REASON_END_TURN, **fields
    )


def event(seq: int) -> sessions_pb2.WatchEventsResponse:
    """An event in a watch."""
    return sessions_pb2.WatchEventsResponse(
        event=common_pb2.Event(seq=seq, type="user.message", data_json='{"n": 1}', version=seq)
    )


async def test_send_returns_the_reply(gateway: ScriptedGateway, connected: client.Client) -> None:
    """Text, data, seq and version come back; who calls and a request id go out."""
    gateway.script["SendMessage"] = [done(seq=4, version=2, data_json='{"rows": [1]}')]
    reply = await connected.sessions.handle("s").send("6 * 7", data={"k": 1})
    assert reply == client.Reply(text="42", data={"rows": [1]}, seq=4, version=2, repeated=False)
    (request,) = gateway.of("SendMessage")
    assert (request.text, request.data_json) == ("6 * 7", '{"k":1}')
    assert request.request_id
    assert gateway.metadata["authorization"] == "Bearer tp_x"
    assert gateway.metadata["x-torpor-tenant"] == "acme"


async def test_retryable_errors_are_retried_with_the_same_request_id(
    gateway: ScriptedGateway, connected: client.Client
) -> None:
    """Whatever is away for a moment is asked again, and the gateway can tell a repeat."""
    gateway.script["SendMessage"] = [
        errors.OwnerUnreachable(),
        errors.Fenced(),
        errors.MailboxFull(),
        done(),
    ]
    assert (await connected.sessions.handle("s").send("x")).text == "42"
    ids = {request.request_id for request in gateway.of("SendMessage")}
    assert len(gateway.of("SendMessage")) == 4
    assert len(ids) == 1


async def test_final_errors_are_not_retried(
    gateway: ScriptedGateway, connected: client.Client
) -> None:
    """An error that will not go away is raised at once, as its class and with its ids."""
    gateway.script["SendMessage"] = [errors.SessionPaused("it is paused", session="s")]
    with pytest.raises(errors.SessionPaused, match="it is paused") as caught:
        await connected.sessions.handle("s").send("x")
    assert caught.value.ids == {"session": "s"}
    assert len(gateway.of("SendMessage")) == 1


async def test_retries_are_bounded_by_count(gateway: ScriptedGateway) -> None:
    """After the policy's last attempt the last error is raised."""
    gateway.script["GetSession"] = [errors.StoreUnavailable()]
    policy = retry.Policy(attempts_max=3, first_s=0.001, most_s=0.001)
    async with client.connect(gateway.address, policy=policy) as connected:
        with pytest.raises(errors.StoreUnavailable):
            await connected.sessions.get("s")
    assert len(gateway.of("GetSession")) == 3


async def test_retries_are_bounded_by_the_deadline(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait that would pass the call's deadline is not begun."""
    asks_for_an_hour = status.TABLE[errors.ResourceExhausted]._replace(retry_after_s=3600.0)
    monkeypatch.setitem(status.TABLE, errors.ResourceExhausted, asks_for_an_hour)
    gateway.script["GetSession"] = [errors.NoCapacity()]
    async with client.connect(gateway.address, timeout_s=60.0, policy=QUICK) as connected:
        with pytest.raises(errors.NoCapacity):
            await connected.sessions.get("s")
    assert len(gateway.of("GetSession")) == 1


async def test_what_may_be_repeated_says_with_which_id(
    gateway: ScriptedGateway, connected: client.Client
) -> None:
    """After an unknown outcome, the error carries the id that asks for the same turn again."""
    gateway.script["SendMessage"] = [errors.OutcomeUnknown()]
    with pytest.raises(errors.OutcomeUnknown) as caught:
        await connected.sessions.handle("s").send("x")
    assert {caught.value.ids["request_id"]} == {
        request.request_id for request in gateway.of("SendMessage")
    }


@pytest.mark.parametrize("refusal", [errors.SessionPaused("paused"), errors.NoCapacity("full")])
async def test_no_refusal_is_certain_after_an_attempt_that_nobody_answered(
    gateway: ScriptedGateway, refusal: errors.TorporError
) -> None:
    """The attempt that was not answered may have committed what a later one refuses."""
    gateway.script["SendMessage"] = [errors.OwnerUnreachable(), refusal]
    policy = retry.Policy(attempts_max=2, first_s=0.001, most_s=0.001)
    async with client.connect(gateway.address, policy=policy) as connected:
        with pytest.raises(errors.OutcomeUnknown, match=refusal.message) as caught:
            await connected.sessions.handle("s").send("x")
    assert "request_id" in caught.value.ids


def test_backoff_doubles_up_to_a_ceiling_and_is_jittered() -> None:
    """The ceiling doubles; the jitter reaches from nothing to all of it, on top of the advice."""
    policy = retry.Policy(first_s=0.1, most_s=1.0)
    most = [policy.delay_s(n, uniform=lambda: 1.0) for n in range(1, 7)]
    assert most == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert policy.delay_s(9, at_least_s=0.5, uniform=lambda: 0.0) == 0.5


@pytest.mark.parametrize(
    ("reason", "cls"),
    [
        ("TURN_FAILED", errors.TurnFailed),
        ("STATE_NOT_PICKLABLE", errors.StateNotPicklable),
        ("WORKSPACE_QUOTA_EXCEEDED", errors.WorkspaceQuotaExceeded),
        ("FROM_THE_FUTURE", errors.TurnFailed),
    ],
)
async def test_a_failed_turn_raises(
    gateway: ScriptedGateway,
    connected: client.Client,
    reason: str,
    cls: type[errors.TorporError],
) -> None:
    """The agent's failure is an error with the event and the version, and is not sent again."""
    gateway.script["SendMessage"] = [
        sessions_pb2.SendMessageResponse(
            stop_reason=sessions_pb2.STOP_REASON_ERROR,
            error_reason=reason,
            error_message="NameError: x",
            seq=6,
            version=3,
        )
    ]
    with pytest.raises(errors.TorporError, match="NameError: x") as caught:
        await connected.sessions.handle("s").send("x")
    assert type(caught.value) is cls
    assert caught.value.ids == {"session": "s", "seq": "6", "version": "3"}
    assert len(gateway.of("SendMessage")) == 1


async def test_post_is_accepted_only(gateway: ScriptedGateway, connected: client.Client) -> None:
    """A posted message asks for no reply and returns the id to ask for it with."""
    gateway.script["SendMessage"] = [
        sessions_pb2.SendMessageResponse(stop_reason=sessions_pb2.STOP_REASON_ACCEPTED)
    ]
    accepted = await connected.sessions.handle("s").post("x", request_id="r-1")
    assert accepted == client.Accepted(request_id="r-1", repeated=False)
    assert gateway.of("SendMessage")[0].accept_only


async def test_a_large_message_is_refused_before_it_is_sent(
    gateway: ScriptedGateway, connected: client.Client
) -> None:
    """What the gateway would refuse does not travel."""
    with pytest.raises(errors.MessageTooLarge):
        await connected.sessions.handle("s").send("x" * (limits.MESSAGE_BYTES_MAX + 1))
    assert gateway.requests == []


async def test_nobody_listens(gateway: ScriptedGateway) -> None:
    """A gateway that is not there is named."""
    await gateway.stop()
    policy = retry.Policy(attempts_max=2, first_s=0.001)
    async with client.connect(gateway.address, policy=policy) as connected:
        with pytest.raises(errors.Unavailable, match=gateway.address):
            await connected.sessions.get("s")


async def test_watch_goes_on_after_broken_streams(
    gateway: ScriptedGateway, connected: client.Client
) -> None:
    """Errors, clean ends and repeats in the stream leave neither a gap nor a repeat."""
    delta = sessions_pb2.WatchEventsResponse(delta="4")
    gateway.script["WatchEvents"] = [
        [event(1), event(2), errors.OwnerUnreachable()],
        [event(2), event(3)],
        errors.StoreUnavailable(),
        [delta, event(4), errors.SessionDeleted()],
    ]
    watch = connected.sessions.handle("s").watch()
    seen = [await anext(watch) for _ in range(5)]
    assert [item.text if isinstance(item, client.Delta) else item.seq for item in seen] == [
        1,
        2,
        3,
        "4",
        4,
    ]
    with pytest.raises(errors.SessionDeleted):
        await anext(watch)
    assert [request.after_seq for request in gateway.of("WatchEvents")] == [0, 2, 3, 3]


async def test_watch_refuses_a_gap(gateway: ScriptedGateway, connected: client.Client) -> None:
    """An event that does not follow the last one is damage, not something to pass over."""
    gateway.script["WatchEvents"] = [[event(1), event(3)]]
    watch = connected.sessions.handle("s").watch()
    assert await anext(watch)
    with pytest.raises(errors.HistoryGap):
        await anext(watch)


async def test_a_filtered_watch_moves_on_with_heartbeats(
    gateway: ScriptedGateway, connected: client.Client
) -> None:
    """Where a type filter leaves holes, a heartbeat says what need not be read again."""
    gateway.script["WatchEvents"] = [
        [event(2), sessions_pb2.WatchEventsResponse(heartbeat_seq=9)],
        errors.SessionDeleted(),
    ]
    watch = connected.sessions.handle("s").watch(types=["user.message"])
    assert await anext(watch)
    with pytest.raises(errors.SessionDeleted):
        await anext(watch)
    assert [request.after_seq for request in gateway.of("WatchEvents")] == [0, 9]


async def test_watch_gives_up_without_progress(
    gateway: ScriptedGateway, connected: client.Client
) -> None:
    """Streams that bring nothing are tried a bounded number of times."""
    gateway.script["WatchEvents"] = [[]]
    with pytest.raises(errors.Unavailable):
        await anext(connected.sessions.handle("s").watch())
    assert len(gateway.of("WatchEvents")) == watching.FRUITLESS_MAX


async def test_history_pages(gateway: ScriptedGateway, connected: client.Client) -> None:
    """All events are read over as many pages as it takes."""
    gateway.script["ListEvents"] = [
        sessions_pb2.ListEventsResponse(events=[event(1).event], next_after_seq=1),
        sessions_pb2.ListEventsResponse(events=[event(2).event]),
    ]
    events = [item async for item in connected.sessions.handle("s").events()]
    assert [item.seq for item in events] == [1, 2]
    assert events[0] == messages.Event(
        seq=1, type="user.message", data={"n": 1}, version=1, at_ms=0
    )
    assert [request.after_seq for request in gateway.of("ListEvents")] == [0, 1]


async def test_sessions_are_made_listed_and_steered(
    gateway: ScriptedGateway, connected: client.Client
) -> None:
    """Each method reaches its call; lists follow page tokens."""
    info = sessions_pb2.Session(id="s", status=sessions_pb2.SESSION_STATUS_PAUSED, resident=True)
    gateway.script["CreateSession"] = [sessions_pb2.CreateSessionResponse(session=info)]
    gateway.script["ListSessions"] = [
        sessions_pb2.ListSessionsResponse(sessions=[info], next_page_token="2"),  # noqa: S106
        sessions_pb2.ListSessionsResponse(sessions=[info]),
    ]
    gateway.script["EvictSession"] = [sessions_pb2.EvictSessionResponse(session=info)]
    gateway.script["PauseSession"] = [sessions_pb2.PauseSessionResponse(session=info)]
    gateway.script["ResumeSession"] = [sessions_pb2.ResumeSessionResponse(session=info)]
    gateway.script["DeleteSession"] = [sessions_pb2.DeleteSessionResponse()]
    gateway.script["ReadLog"] = [
        [sessions_pb2.ReadLogResponse(data=b"a"), errors.StorageUnavailable()],
        [sessions_pb2.ReadLogResponse(data=b"a"), sessions_pb2.ReadLogResponse(data=b"b")],
    ]
    session = await connected.sessions.create(agent="notebook")
    assert [(item.id, item.status) async for item in connected.sessions.list()] == [
        ("s", "paused"),
        ("s", "paused"),
    ]
    assert (await session.evict()).resident
    assert (await session.pause()).status == (await session.resume()).status == "paused"
    assert await session.logs() == b"ab", "a log that broke off is read again from its beginning"
    await session.delete()
    for method in ("CreateSession", "EvictSession", "PauseSession", "DeleteSession"):
        assert gateway.of(method)[0].request_id, method


async def test_files(
    gateway: ScriptedGateway, connected: client.Client, tmp_path: pathlib.Path
) -> None:
    """Files go both ways in pieces; a read that broke off leaves nothing and starts again."""
    file = workspaces_pb2.File(path="a.txt", kind=workspaces_pb2.FILE_KIND_REGULAR, size_bytes=2)
    pieces = [
        workspaces_pb2.ReadFileResponse(file=file),
        workspaces_pb2.ReadFileResponse(data=b"h"),
        workspaces_pb2.ReadFileResponse(data=b"i"),
    ]
    gateway.script["ListFiles"] = [workspaces_pb2.ListFilesResponse(files=[file])]
    gateway.script["ReadFile"] = [[*pieces[:2], errors.StorageUnavailable()], pieces]
    gateway.script["WriteFile"] = [
        errors.OwnerUnreachable(),
        workspaces_pb2.WriteFileResponse(file=file, version=7),
    ]
    files = connected.sessions.handle("s").files
    assert [(item.path, item.kind) async for item in files.list()] == [("a.txt", "regular")]
    local = tmp_path / "local.txt"
    assert await files.read_to("a.txt", local) == 2
    assert os.listdir(tmp_path) == ["local.txt"]  # noqa: PTH208
    assert local.read_bytes() == await files.read("a.txt") == b"hi"

    local.write_bytes(b"x" * (limits.FILE_CHUNK_BYTES + 1))
    written = await files.write("a.txt", local, mode=0o600)
    assert (written.version, written.file.path) == (7, "a.txt")
    first, second = gateway.of("WriteFile")
    assert first[0].header.request_id == second[0].header.request_id != ""
    assert [len(item.data) for item in second[1:]] == [limits.FILE_CHUNK_BYTES, 1]


async def test_agents_and_nodes(gateway: ScriptedGateway, connected: client.Client) -> None:
    """Registering, listing and draining reach their calls."""
    agent = agents_pb2.Agent(name="notebook", version=2, import_path="m:C")
    node = admin_pb2.Node(id="n", draining=True)
    gateway.script["RegisterAgent"] = [agents_pb2.RegisterAgentResponse(agent=agent)]
    gateway.script["ListAgents"] = [agents_pb2.ListAgentsResponse(agents=[agent])]
    gateway.script["ListNodes"] = [admin_pb2.ListNodesResponse(nodes=[node])]
    gateway.script["DrainNode"] = [admin_pb2.DrainNodeResponse(node=node)]
    assert (await connected.agents.register("m:C")).version == 2
    assert [item.name async for item in connected.agents.list()] == ["notebook"]
    assert [item.id for item in await connected.admin.nodes()] == ["n"]
    assert (await connected.admin.drain("n")).draining


async def test_torpor_connect_is_this_client(gateway: ScriptedGateway) -> None:
    """The function that `import torpor` offers connects this client."""
    gateway.script["ListNodes"] = [admin_pb2.ListNodesResponse()]
    async with torpor.connect(gateway.address) as connected:
        assert await connected.admin.nodes() == []
    assert "authorization" not in gateway.metadata


async def test_a_file_that_cannot_be_read_is_told(
    gateway: ScriptedGateway, connected: client.Client, tmp_path: pathlib.Path
) -> None:
    """A local file that is gone is the caller's error, not a cancelled call."""
    gateway.script["WriteFile"] = [workspaces_pb2.WriteFileResponse()]
    with pytest.raises(FileNotFoundError):
        await connected.sessions.handle("s").files.write("a.txt", tmp_path / "gone")


async def test_watch_leaves_a_gateway_that_hangs(
    connected: client.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that stays open and brings not even a heartbeat counts as broken."""

    async def hang(*args: object, **fields: object) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(watching, "SILENCE_MAX_S", 0.001)
    watched = connected.sessions.handle("s")
    monkeypatch.setattr(watched._link, "stream", hang)
    with pytest.raises(errors.Unavailable, match="said nothing"):
        await anext(watched.watch())
