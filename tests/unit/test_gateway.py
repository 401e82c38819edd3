"""The gateway as its clients meet it: real gRPC, the store in memory, a cluster in this process."""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from torpor import clock, deployment, errors, limits, messages, status
from torpor.router import gateway
from torpor.storage import local_blobs, memory_store, records
from torpor.testing import eventually, in_process_cluster
from torpor.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    agents_pb2,
    agents_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    workspaces_pb2,
    workspaces_pb2_grpc,
)

USER = (("authorization", "Bearer user-key"),)
OPERATOR = (("authorization", "Bearer operator-key"),)


class Api(NamedTuple):
    """A running gateway and what is around it."""

    gateway: gateway.Gateway
    store: memory_store.MemoryStore
    cluster: in_process_cluster.InProcessCluster
    place: deployment.Deployment
    channel: grpc.aio.Channel
    port: int

    @property
    def sessions(self) -> sessions_pb2_grpc.SessionsAsyncStub:
        """The service."""
        return sessions_pb2_grpc.SessionsStub(self.channel)

    @property
    def workspaces(self) -> workspaces_pb2_grpc.WorkspacesAsyncStub:
        """The service."""
        return workspaces_pb2_grpc.WorkspacesStub(self.channel)

    @property
    def agents(self) -> agents_pb2_grpc.AgentsAsyncStub:
        """The service."""
        return agents_pb2_grpc.AgentsStub(self.channel)

    @property
    def admin(self) -> admin_pb2_grpc.AdminAsyncStub:
        """The service."""
        return admin_pb2_grpc.AdminStub(self.channel)


@pytest.fixture
async def api(tmp_path: pathlib.Path) -> AsyncIterator[Api]:
    """A gateway over three nodes, with two tenants, an agent and a session `s1`."""
    place = deployment.Deployment(
        store_url="",
        storage=tmp_path / "shared",
        scratch=tmp_path / "scratch",
        signing_key_file=tmp_path / "key",
        calls_in_flight_max=4,
    )
    store = memory_store.MemoryStore()
    for tenant in ("acme", "other"):
        await store.catalog.create_tenant(tenant, at_ms=0)
    for secret, operator in (("user-key", False), ("operator-key", True)):
        await store.catalog.put_key(
            hashlib.sha256(secret.encode()).hexdigest(),
            records.ApiKey(tenant="acme", operator=operator, label="", created_ms=0),
        )
    cluster = in_process_cluster.InProcessCluster(store)
    await cluster.start()
    blobs = local_blobs.LocalBlobStore(place.storage)
    served = gateway.Gateway(place, store, blobs, cluster, clock.SystemClock())
    port = await served.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        made = Api(served, store, cluster, place, channel, port)
        await made.agents.RegisterAgent(
            agents_pb2.RegisterAgentRequest(import_path="examples:Echo"), metadata=USER
        )
        await made.sessions.CreateSession(
            sessions_pb2.CreateSessionRequest(agent="echo", session_id="s1", request_id="r1"),
            metadata=USER,
        )
        yield made
    await served.stop(0)


def send(text: str, request_id: str, **fields: Any) -> sessions_pb2.SendMessageRequest:
    """Return a message to `s1`."""
    fields = {"session_id": "s1", **fields}
    return sessions_pb2.SendMessageRequest(text=text, request_id=request_id, **fields)


async def refusal(answer: Any) -> errors.TorporError:
    """Return the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    return status.from_rpc_error(caught.value)


async def test_a_message_wakes_the_session_and_is_answered(api: Api) -> None:
    """The first message activates once; the second finds the owner without asking anybody."""
    first = await api.sessions.SendMessage(send("hello", "m1"), metadata=USER)
    assert (first.text, first.stop_reason) == ("echo: hello", sessions_pb2.STOP_REASON_END_TURN)
    second = await api.sessions.SendMessage(send("again", "m2"), metadata=USER)
    assert second.version == first.version + 1
    assert api.cluster.count("activate") == 1
    got = await api.sessions.GetSession(
        sessions_pb2.GetSessionRequest(session_id="s1"), metadata=USER
    )
    assert got.session.resident
    assert got.session.last_seq == second.seq


async def test_the_same_request_id_is_handled_once(api: Api) -> None:
    """A repeat is answered from what was committed, and says so."""
    first = await api.sessions.SendMessage(send("hello", "m1"), metadata=USER)
    again = await api.sessions.SendMessage(send("hello", "m1"), metadata=USER)
    assert again.repeated
    assert (again.seq, again.version) == (first.seq, first.version)


async def test_creating_again_with_the_same_request_id_returns_the_same_session(api: Api) -> None:
    """Also when the server chose the id; another request for a taken id is refused."""
    request = sessions_pb2.CreateSessionRequest(agent="echo", request_id="c1")
    first = await api.sessions.CreateSession(request, metadata=USER)
    again = await api.sessions.CreateSession(request, metadata=USER)
    assert first.session.id == again.session.id
    taken = sessions_pb2.CreateSessionRequest(agent="echo", session_id="s1", request_id="c2")
    assert isinstance(
        await refusal(api.sessions.CreateSession(taken, metadata=USER)), errors.SessionExists
    )


async def test_accepted_messages_are_handled_in_the_background(api: Api) -> None:
    """The call returns before the turn; the session is woken and the message is handled."""
    answer = await api.sessions.SendMessage(send("later", "m1", accept_only=True), metadata=USER)
    assert answer.stop_reason == sessions_pb2.STOP_REASON_ACCEPTED

    async def handled() -> bool:
        page = await api.sessions.ListEvents(
            sessions_pb2.ListEventsRequest(session_id="s1", types=[messages.AGENT_MESSAGE]),
            metadata=USER,
        )
        return len(page.events) == 1

    await eventually.assert_eventually(handled)
    again = await api.sessions.SendMessage(send("later", "m1", accept_only=True), metadata=USER)
    assert again.repeated


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((), errors.ApiKeyMissing),
        ((("authorization", "Basic user-key"),), errors.ApiKeyMissing),
        ((("authorization", "Bearer wrong"),), errors.ApiKeyInvalid),
        ((*USER, ("x-torpor-tenant", "other")), errors.OperatorOnly),
        ((*OPERATOR, ("x-torpor-tenant", "nobody")), errors.TenantNotFound),
        ((*OPERATOR, ("x-torpor-tenant", "other")), errors.SessionNotFound),
    ],
)
async def test_who_may_see_a_session(
    api: Api, metadata: tuple[tuple[str, str], ...], expected: type[errors.TorporError]
) -> None:
    """A key opens its own tenant; only an operator may name another, and sees only its."""
    request = sessions_pb2.GetSessionRequest(session_id="s1")
    assert isinstance(await refusal(api.sessions.GetSession(request, metadata=metadata)), expected)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"session_id": "../x"}, "session_id"),
        ({"request_id": ""}, "request_id"),
        ({"data_json": "[1]"}, "data_json"),
        ({"data_json": "{"}, "data_json"),
        ({"sender": "A B"}, "sender"),
        ({"busy": 99}, "busy"),
        ({"min_version": -1}, "min_version"),
    ],
)
async def test_a_wrong_field_is_named(api: Api, fields: dict[str, Any], field: str) -> None:
    """The error says which field is wrong, and nothing was woken."""
    request = send("x", **{"request_id": "m1", **fields})
    error = await refusal(api.sessions.SendMessage(request, metadata=USER))
    assert isinstance(error, errors.InvalidField)
    assert error.ids["field"] == field
    assert api.cluster.count("activate") == 0


async def test_a_message_that_is_too_large_is_refused(api: Api) -> None:
    """One byte more than the limit is too much."""
    text = "x" * (limits.MESSAGE_BYTES_MAX + 1)
    error = await refusal(api.sessions.SendMessage(send(text, "m1"), metadata=USER))
    assert isinstance(error, errors.MessageTooLarge)


async def test_calls_in_flight_are_bounded(api: Api) -> None:
    """With four turns under way a fifth call is refused, and admitted again once they are done."""
    opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    api.cluster.gate = lambda: opened
    under_way = [
        asyncio.ensure_future(api.sessions.SendMessage(send("x", f"m{i}"), metadata=USER))
        for i in range(4)
    ]

    async def all_under_way() -> bool:
        return api.cluster.count("deliver") == 4

    await eventually.assert_eventually(all_under_way)
    request = sessions_pb2.GetSessionRequest(session_id="s1")
    error = await refusal(api.sessions.GetSession(request, metadata=USER))
    assert isinstance(error, errors.TooManyRequests)
    opened.set_result(None)
    await asyncio.gather(*under_way)
    await api.sessions.GetSession(request, metadata=USER)


async def test_an_unexpected_error_tells_only_its_id(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets INTERNAL and an id, the log has the id and the cause."""

    async def broken(key: records.SessionKey) -> records.Head:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(api.store.sessions, "head", broken)
    request = sessions_pb2.GetSessionRequest(session_id="s1")
    error = await refusal(api.sessions.GetSession(request, metadata=USER))
    assert isinstance(error, errors.Internal)
    assert "secret detail" not in error.message
    assert error.ids["error"] in caplog.text
    assert "secret detail" in caplog.text


async def test_watching_replays_and_follows(api: Api) -> None:
    """Events from before the call and of turns after it arrive once each, across an eviction."""
    await api.sessions.SendMessage(send("one", "m1"), metadata=USER)
    watch = api.sessions.WatchEvents(
        sessions_pb2.WatchEventsRequest(session_id="s1"), metadata=USER
    )
    seqs = [(await watch.read()).event.seq for _ in range(3)]
    evicted = await api.sessions.EvictSession(
        sessions_pb2.EvictSessionRequest(session_id="s1"), metadata=USER
    )
    assert not evicted.session.resident
    await api.sessions.SendMessage(send("two", "m2"), metadata=USER)
    seqs += [(await watch.read()).event.seq for _ in range(2)]
    watch.cancel()
    assert seqs == [1, 2, 3, 4, 5]
    assert api.cluster.count("activate") == 2


async def test_a_paused_session_refuses_messages_until_resumed(api: Api) -> None:
    """Pausing a sleeping session wakes nothing; what was accepted meanwhile is handled later."""
    pause = sessions_pb2.PauseSessionRequest(session_id="s1")
    paused = await api.sessions.PauseSession(pause, metadata=USER)
    assert paused.session.status == sessions_pb2.SESSION_STATUS_PAUSED
    again = await api.sessions.PauseSession(pause, metadata=USER)
    assert again.session.version == paused.session.version
    error = await refusal(api.sessions.SendMessage(send("x", "m1"), metadata=USER))
    assert isinstance(error, errors.SessionPaused)
    await api.sessions.SendMessage(send("kept", "m2", accept_only=True), metadata=USER)
    assert api.cluster.count("activate") == 0
    await api.sessions.ResumeSession(
        sessions_pb2.ResumeSessionRequest(session_id="s1"), metadata=USER
    )

    async def handled() -> bool:
        head = await api.store.sessions.head(records.SessionKey("acme", "s1"))
        return head.version == paused.session.version + 2

    await eventually.assert_eventually(handled)


async def test_deleted_stays_deleted(api: Api) -> None:
    """Deleting twice succeeds, and nobody reaches the session any more."""
    await api.sessions.SendMessage(send("x", "m1"), metadata=USER)
    for _ in range(2):
        await api.sessions.DeleteSession(
            sessions_pb2.DeleteSessionRequest(session_id="s1"), metadata=USER
        )
    request = sessions_pb2.GetSessionRequest(session_id="s1")
    assert isinstance(
        await refusal(api.sessions.GetSession(request, metadata=USER)), errors.SessionDeleted
    )


async def test_sessions_and_agents_are_listed_in_pages(api: Api) -> None:
    """The token leads on to the rest and is empty at the end."""
    for i in range(2):
        request = sessions_pb2.CreateSessionRequest(agent="echo", request_id=f"c{i}")
        await api.sessions.CreateSession(request, metadata=USER)
    seen, token = [], ""
    while not seen or token:
        page = await api.sessions.ListSessions(
            sessions_pb2.ListSessionsRequest(page_size=2, page_token=token), metadata=USER
        )
        seen += [session.id for session in page.sessions]
        token = page.next_page_token
    assert len(set(seen)) == len(seen) == 3
    await api.agents.RegisterAgent(
        agents_pb2.RegisterAgentRequest(import_path="examples:Other"), metadata=USER
    )
    first = await api.agents.ListAgents(agents_pb2.ListAgentsRequest(page_size=1), metadata=USER)
    rest = await api.agents.ListAgents(
        agents_pb2.ListAgentsRequest(page_token=first.next_page_token), metadata=USER
    )
    assert [agent.name for agent in (*first.agents, *rest.agents)] == ["echo", "other"]
    assert not rest.next_page_token


async def test_a_file_is_stored_and_handed_to_the_owner(api: Api) -> None:
    """The content is in the blob store under its hash before the owner hears of it."""
    content = b"x" * 100_000

    async def pieces() -> AsyncIterator[workspaces_pb2.WriteFileRequest]:
        header = workspaces_pb2.WriteFileHeader(session_id="s1", path="a/./b.txt", request_id="w1")
        yield workspaces_pb2.WriteFileRequest(header=header)
        for start in range(0, len(content), 30_000):
            yield workspaces_pb2.WriteFileRequest(data=content[start : start + 30_000])

    written = await api.workspaces.WriteFile(pieces(), metadata=USER)
    assert (written.file.path, written.file.size_bytes) == ("a/b.txt", len(content))
    assert api.cluster.calls[-1] == ("place_file", "a/b.txt")
    blobs = local_blobs.LocalBlobStore(api.place.storage)
    assert blobs.get("acme", written.file.digest, bytes_max=1 << 20) == content
    assert not list((api.place.scratch / "uploads").iterdir())


async def test_an_upload_beyond_the_quota_is_refused(api: Api) -> None:
    """Nothing reaches the owner, and no temporary file remains."""
    api.cluster.settings = type(api.cluster.settings)(workspace_quota_bytes=10)
    await api.agents.RegisterAgent(
        agents_pb2.RegisterAgentRequest(import_path="examples:Small"), metadata=USER
    )
    await api.sessions.CreateSession(
        sessions_pb2.CreateSessionRequest(agent="small", session_id="s2"), metadata=USER
    )

    async def pieces() -> AsyncIterator[workspaces_pb2.WriteFileRequest]:
        header = workspaces_pb2.WriteFileHeader(session_id="s2", path="a", request_id="w1")
        yield workspaces_pb2.WriteFileRequest(header=header)
        yield workspaces_pb2.WriteFileRequest(data=b"eleven byte")

    error = await refusal(api.workspaces.WriteFile(pieces(), metadata=USER))
    assert isinstance(error, errors.WorkspaceQuotaExceeded)
    assert api.cluster.count("place_file") == 0
    assert not list((api.place.scratch / "uploads").iterdir())


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ""])
async def test_no_path_leads_out_of_the_workspace(api: Api, path: str) -> None:
    """Reading and writing refuse it alike."""
    read = api.workspaces.ReadFile(
        workspaces_pb2.ReadFileRequest(session_id="s1", path=path), metadata=USER
    )
    assert isinstance(await refusal(read.read()), errors.PathOutsideWorkspace)

    async def pieces() -> AsyncIterator[workspaces_pb2.WriteFileRequest]:
        header = workspaces_pb2.WriteFileHeader(session_id="s1", path=path, request_id="w1")
        yield workspaces_pb2.WriteFileRequest(header=header)

    error = await refusal(api.workspaces.WriteFile(pieces(), metadata=USER))
    assert isinstance(error, errors.PathOutsideWorkspace)


async def test_an_empty_workspace_lists_nothing_and_wakes_nothing(api: Api) -> None:
    """A listing says which version it belongs to; a file that is not there is not found."""
    listed = await api.workspaces.ListFiles(
        workspaces_pb2.ListFilesRequest(session_id="s1"), metadata=USER
    )
    assert not listed.files
    assert listed.version == 1
    read = api.workspaces.ReadFile(
        workspaces_pb2.ReadFileRequest(session_id="s1", path="a"), metadata=USER
    )
    assert isinstance(await refusal(read.read()), errors.WorkspaceFileNotFound)
    assert api.cluster.count("activate") == 0


async def test_the_log_is_read_oldest_first(api: Api) -> None:
    """Both files in order of their names; a session without a log has an empty one."""
    folder = api.place.storage / "acme" / "logs" / "s1"
    request = sessions_pb2.ReadLogRequest(session_id="s1")
    assert [piece async for piece in api.sessions.ReadLog(request, metadata=USER)] == []
    folder.mkdir(parents=True)
    (folder / "2.log").write_bytes(b"new")
    (folder / "1.log").write_bytes(b"old ")
    pieces = [piece.data async for piece in api.sessions.ReadLog(request, metadata=USER)]
    assert b"".join(pieces) == b"old new"


async def test_draining_needs_an_operator_and_empties_the_node(api: Api) -> None:
    """The call answers once the node has nothing left."""
    await api.sessions.SendMessage(send("x", "m1"), metadata=USER)
    head = await api.store.sessions.head(records.SessionKey("acme", "s1"))
    assert head.owner is not None
    request = admin_pb2.DrainNodeRequest(node=head.owner.node)
    assert isinstance(
        await refusal(api.admin.DrainNode(request, metadata=USER)), errors.OperatorOnly
    )
    drained = await api.admin.DrainNode(request, metadata=OPERATOR)
    assert drained.node.draining
    assert drained.node.sessions == 0
    unknown = admin_pb2.DrainNodeRequest(node="nowhere")
    assert isinstance(
        await refusal(api.admin.DrainNode(unknown, metadata=OPERATOR)), errors.NodeNotFound
    )
    listed = await api.admin.ListNodes(admin_pb2.ListNodesRequest(), metadata=OPERATOR)
    assert [node.alive for node in listed.nodes] == [True, True, True]


async def test_health_and_reflection_need_no_key(api: Api) -> None:
    """Probes and grpcurl work on a gateway as it comes."""
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    for service in ("", "torpor.v1.Sessions"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    listing = reflection.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    names = {service.name for service in (await listing.read()).list_services_response.service}
    assert {"torpor.v1.Sessions", "torpor.v1.Admin", "grpc.health.v1.Health"} <= names


async def test_a_port_that_is_taken_is_a_clear_error(api: Api, tmp_path: pathlib.Path) -> None:
    """Two gateways never share a port without knowing."""
    second = gateway.Gateway(
        api.place,
        api.store,
        local_blobs.LocalBlobStore(tmp_path),
        api.cluster,
        clock.SystemClock(),
    )
    with pytest.raises(errors.FailedPrecondition, match=f"{api.port}"):
        await second.start("127.0.0.1", api.port)
    await second.stop(0)


async def test_two_gateways_share_one_activation(api: Api, tmp_path: pathlib.Path) -> None:
    """Callers at both at once: one claim wins, and everybody is answered by that owner."""
    second = gateway.Gateway(
        msgspec.structs.replace(api.place, calls_in_flight_max=100),
        api.store,
        local_blobs.LocalBlobStore(tmp_path),
        api.cluster,
        clock.SystemClock(),
    )
    port = await second.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stubs = [api.sessions] * 2 + [sessions_pb2_grpc.SessionsStub(channel)] * 10
        answers = await asyncio.gather(
            *(
                stub.SendMessage(send(f"{i}", f"m{i}"), metadata=USER)
                for i, stub in enumerate(stubs)
            ),
        )
    await second.stop(0)
    assert sorted(answer.version for answer in answers) == list(range(2, 14))
    head = await api.store.sessions.head(records.SessionKey("acme", "s1"))
    assert head.epoch == 1
    assert api.cluster.count("activate") <= 2
