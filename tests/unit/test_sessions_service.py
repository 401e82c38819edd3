"""The service Sessions as its clients meet it."""

import hashlib
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from torpor import client, errors, limits, messages
from torpor.router import auth
from torpor.storage import records
from torpor.testing import eventually, served_gateway
from torpor.v1 import agents_pb2, sessions_pb2


@pytest.fixture
async def api(tmp_path: pathlib.Path) -> AsyncIterator[served_gateway.ServedGateway]:
    """A gateway over three nodes, with a sleeping session `s1`."""
    async with served_gateway.serve(tmp_path) as served:
        yield served


async def test_a_message_wakes_the_session_and_is_answered(
    api: served_gateway.ServedGateway,
) -> None:
    """The first message activates once; the second finds the owner without asking anybody."""
    first = await api.sessions.SendMessage(
        served_gateway.send("hello", "m1"), metadata=served_gateway.USER
    )
    assert (first.text, first.stop_reason) == ("echo: hello", sessions_pb2.STOP_REASON_END_TURN)
    second = await api.sessions.SendMessage(
        served_gateway.send("again", "m2"), metadata=served_gateway.USER
    )
    assert second.version == first.version + 1
    assert api.cluster.count("activate") == 1
    got = await api.sessions.GetSession(
        sessions_pb2.GetSessionRequest(session_id="s1"), metadata=served_gateway.USER
    )
    assert got.session.resident
    assert got.session.node_name == api.cluster.nodes[got.session.node].name
    assert got.session.last_seq == second.seq


async def test_the_same_request_id_is_handled_once(api: served_gateway.ServedGateway) -> None:
    """A repeat is answered from what was committed, and says so."""
    first = await api.sessions.SendMessage(
        served_gateway.send("hello", "m1"), metadata=served_gateway.USER
    )
    again = await api.sessions.SendMessage(
        served_gateway.send("hello", "m1"), metadata=served_gateway.USER
    )
    assert again.repeated
    assert (again.seq, again.version) == (first.seq, first.version)


async def test_creating_again_with_the_same_request_id_returns_the_same_session(
    api: served_gateway.ServedGateway,
) -> None:
    """Also when the server chose the id; another request for a taken id is refused."""
    request = sessions_pb2.CreateSessionRequest(agent="echo", request_id="c1")
    first = await api.sessions.CreateSession(request, metadata=served_gateway.USER)
    again = await api.sessions.CreateSession(request, metadata=served_gateway.USER)
    assert first.session.id == again.session.id
    taken = sessions_pb2.CreateSessionRequest(agent="echo", session_id="s1", request_id="c2")
    assert isinstance(
        await served_gateway.refusal(
            api.sessions.CreateSession(taken, metadata=served_gateway.USER)
        ),
        errors.SessionExists,
    )


async def test_accepted_messages_are_handled_in_the_background(
    api: served_gateway.ServedGateway,
) -> None:
    """The call returns before the turn; the session is woken and the message is handled."""
    answer = await api.sessions.SendMessage(
        served_gateway.send("later", "m1", accept_only=True), metadata=served_gateway.USER
    )
    assert answer.stop_reason == sessions_pb2.STOP_REASON_ACCEPTED

    async def handled() -> bool:
        page = await api.sessions.ListEvents(
            sessions_pb2.ListEventsRequest(session_id="s1", types=[messages.AGENT_MESSAGE]),
            metadata=served_gateway.USER,
        )
        return len(page.events) == 1

    await eventually.assert_eventually(handled)
    again = await api.sessions.SendMessage(
        served_gateway.send("later", "m1", accept_only=True), metadata=served_gateway.USER
    )
    assert again.repeated


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"session_id": "../x"}, "session_id"),
        ({"request_id": ""}, "request_id"),
        ({"data_json": "[1]"}, "data_json"),
        ({"data_json": "{"}, "data_json"),
        ({"data_json": '{"n": 18446744073709551616}'}, "data_json"),
        ({"sender": "A B"}, "sender"),
        ({"busy": 99}, "busy"),
        ({"min_version": -1}, "min_version"),
        ({"accept_only": True, "min_version": 1}, "accept_only"),
        ({"accept_only": True, "busy": sessions_pb2.BUSY_POLICY_REJECT}, "accept_only"),
    ],
)
async def test_a_wrong_field_is_named(
    api: served_gateway.ServedGateway, fields: dict[str, Any], field: str
) -> None:
    """The error says which field is wrong, and nothing was woken."""
    request = served_gateway.send("x", **{"request_id": "m1", **fields})
    error = await served_gateway.refusal(
        api.sessions.SendMessage(request, metadata=served_gateway.USER)
    )
    assert isinstance(error, errors.InvalidField)
    assert error.ids["field"] == field
    assert api.cluster.count("activate") == 0


async def test_a_message_that_is_too_large_is_refused(api: served_gateway.ServedGateway) -> None:
    """One byte more than the limit is too much."""
    text = "x" * (limits.MESSAGE_BYTES_MAX + 1)
    error = await served_gateway.refusal(
        api.sessions.SendMessage(served_gateway.send(text, "m1"), metadata=served_gateway.USER)
    )
    assert isinstance(error, errors.MessageTooLarge)


async def test_watching_replays_and_follows(api: served_gateway.ServedGateway) -> None:
    """Events from before the call and of turns after it arrive once each, across an eviction."""
    await api.sessions.SendMessage(served_gateway.send("one", "m1"), metadata=served_gateway.USER)
    watch = api.sessions.WatchEvents(
        sessions_pb2.WatchEventsRequest(session_id="s1"), metadata=served_gateway.USER
    )
    seqs = [(await watch.read()).event.seq for _ in range(3)]
    evicted = await api.sessions.EvictSession(
        sessions_pb2.EvictSessionRequest(session_id="s1"), metadata=served_gateway.USER
    )
    assert not evicted.session.resident
    await api.sessions.SendMessage(served_gateway.send("two", "m2"), metadata=served_gateway.USER)
    seqs += [(await watch.read()).event.seq for _ in range(2)]
    watch.cancel()
    assert seqs == [1, 2, 3, 4, 5]
    assert api.cluster.count("activate") == 2


async def test_a_paused_session_refuses_messages_until_resumed(
    api: served_gateway.ServedGateway,
) -> None:
    """Pausing a sleeping session wakes nothing; what was accepted meanwhile is handled later."""
    pause = sessions_pb2.PauseSessionRequest(session_id="s1")
    paused = await api.sessions.PauseSession(pause, metadata=served_gateway.USER)
    assert paused.session.status == sessions_pb2.SESSION_STATUS_PAUSED
    again = await api.sessions.PauseSession(pause, metadata=served_gateway.USER)
    assert again.session.version == paused.session.version
    error = await served_gateway.refusal(
        api.sessions.SendMessage(served_gateway.send("x", "m1"), metadata=served_gateway.USER)
    )
    assert isinstance(error, errors.SessionPaused)
    await api.sessions.SendMessage(
        served_gateway.send("kept", "m2", accept_only=True), metadata=served_gateway.USER
    )
    assert api.cluster.count("activate") == 0
    await api.sessions.ResumeSession(
        sessions_pb2.ResumeSessionRequest(session_id="s1"), metadata=served_gateway.USER
    )

    async def handled() -> bool:
        head = await api.store.sessions.head(records.SessionKey("acme", "s1"))
        return head.version == paused.session.version + 2

    await eventually.assert_eventually(handled)


async def test_deleted_stays_deleted(api: served_gateway.ServedGateway) -> None:
    """Deleting twice succeeds, and nobody reaches the session any more."""
    await api.sessions.SendMessage(served_gateway.send("x", "m1"), metadata=served_gateway.USER)
    for _ in range(2):
        await api.sessions.DeleteSession(
            sessions_pb2.DeleteSessionRequest(session_id="s1"), metadata=served_gateway.USER
        )
    request = sessions_pb2.GetSessionRequest(session_id="s1")
    assert isinstance(
        await served_gateway.refusal(
            api.sessions.GetSession(request, metadata=served_gateway.USER)
        ),
        errors.SessionDeleted,
    )


async def test_sessions_and_agents_are_listed_in_pages(api: served_gateway.ServedGateway) -> None:
    """The token leads on to the rest and is empty at the end."""
    for i in range(2):
        request = sessions_pb2.CreateSessionRequest(agent="echo", request_id=f"c{i}")
        await api.sessions.CreateSession(request, metadata=served_gateway.USER)
    seen, token = [], ""
    while not seen or token:
        page = await api.sessions.ListSessions(
            sessions_pb2.ListSessionsRequest(page_size=2, page_token=token),
            metadata=served_gateway.USER,
        )
        seen += [session.id for session in page.sessions]
        token = page.next_page_token
    assert len(set(seen)) == len(seen) == 3
    await api.agents.RegisterAgent(
        agents_pb2.RegisterAgentRequest(import_path="examples:Other"), metadata=served_gateway.USER
    )
    first = await api.agents.ListAgents(
        agents_pb2.ListAgentsRequest(page_size=1), metadata=served_gateway.USER
    )
    rest = await api.agents.ListAgents(
        agents_pb2.ListAgentsRequest(page_token=first.next_page_token), metadata=served_gateway.USER
    )
    assert [agent.name for agent in (*first.agents, *rest.agents)] == ["echo", "other"]
    assert not rest.next_page_token


async def test_the_log_is_read_oldest_first(api: served_gateway.ServedGateway) -> None:
    """Both files in order of their names; a session without a log has an empty one."""
    folder = api.place.storage / "acme" / "logs" / "s1"
    request = sessions_pb2.ReadLogRequest(session_id="s1")
    assert [
        piece async for piece in api.sessions.ReadLog(request, metadata=served_gateway.USER)
    ] == []
    folder.mkdir(parents=True)
    (folder / "2.log").write_bytes(b"new")
    (folder / "1.log").write_bytes(b"old ")
    pieces = [
        piece.data async for piece in api.sessions.ReadLog(request, metadata=served_gateway.USER)
    ]
    assert b"".join(pieces) == b"old new"


async def test_a_request_id_makes_one_session_of_one_agent(
    api: served_gateway.ServedGateway,
) -> None:
    """The same request id for another agent is a mistake, and says which session it made."""
    await api.agents.RegisterAgent(
        agents_pb2.RegisterAgentRequest(import_path="examples:Other"), metadata=served_gateway.USER
    )
    request = sessions_pb2.CreateSessionRequest(agent="other", session_id="s1", request_id="r1")
    error = await served_gateway.refusal(
        api.sessions.CreateSession(request, metadata=served_gateway.USER)
    )
    assert isinstance(error, errors.RequestIdReused)
    assert error.ids["session"] == "s1"


async def test_a_page_of_large_events_fits_into_a_response(
    api: served_gateway.ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large events are, pages follow each other without a gap up to the end."""
    monkeypatch.setattr(limits, "PAGE_EVENTS_BYTES_MAX", 10_000)
    for i in range(5):
        await api.sessions.SendMessage(
            served_gateway.send("x" * 6_000, f"m{i}"), metadata=served_gateway.USER
        )
    seqs: list[int] = []
    pages = after = 0
    while not pages or after:
        page = await api.sessions.ListEvents(
            sessions_pb2.ListEventsRequest(session_id="s1", after_seq=after),
            metadata=served_gateway.USER,
        )
        assert page.ByteSize() < 10_000 + 7_000
        seqs += [event.seq for event in page.events]
        after, pages = page.next_after_seq, pages + 1
    assert seqs == list(range(1, 12))
    assert pages > 1


async def test_an_event_of_the_worst_kind_arrives(api: served_gateway.ServedGateway) -> None:
    """In JSON a control character takes six bytes: the largest message still comes back."""
    text = "\0" * (limits.MESSAGE_BYTES_MAX - 100)
    async with client.connect(f"127.0.0.1:{api.port}", api_key="user-key") as connected:
        session = connected.sessions.handle("s1")
        await session.send(text)
        page = await session.history(after_seq=1)
    assert page.events[0].data["text"] == text


async def test_revoking_a_key_ends_its_watches(
    api: served_gateway.ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that was opened with the key does not outlive it."""
    monkeypatch.setattr(auth, "TRUST_S", 0.0)
    digest = hashlib.sha256(b"brief-key").hexdigest()
    await api.store.catalog.put_key(
        digest, records.ApiKey(tenant="acme", operator=False, label="", created_ms=0)
    )
    watch = api.sessions.WatchEvents(
        sessions_pb2.WatchEventsRequest(session_id="s1"),
        metadata=(("authorization", "Bearer brief-key"),),
    )
    assert (await watch.read()).event.seq == 1
    await api.store.catalog.revoke_key(digest)
    await api.sessions.SendMessage(
        served_gateway.send("secret", "m1"), metadata=served_gateway.OPERATOR
    )
    assert isinstance(await served_gateway.refusal(watch.read()), errors.ApiKeyInvalid)


async def test_a_client_that_hangs_up_leaves_nothing_behind(
    api: served_gateway.ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place among the watchers is free again."""
    monkeypatch.setattr(limits, "WATCHERS_MAX", 1)
    request = sessions_pb2.WatchEventsRequest(session_id="s1")
    first = api.sessions.WatchEvents(request, metadata=served_gateway.USER)
    await first.read()
    first.cancel()

    async def room() -> bool:
        watch = api.sessions.WatchEvents(request, metadata=served_gateway.USER)
        try:
            return bool((await watch.read()).event.seq)
        except grpc.aio.AioRpcError:
            return False
        finally:
            watch.cancel()

    await eventually.assert_eventually(room)
