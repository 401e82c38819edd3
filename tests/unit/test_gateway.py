"""The gateway as a server: who may call, how much, health, nodes. Real gRPC, no Ray."""

import asyncio
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from torpor import clock, errors
from torpor.router import gateway
from torpor.storage import local_blobs, records
from torpor.testing import eventually, served_gateway
from torpor.v1 import admin_pb2, sessions_pb2, sessions_pb2_grpc


@pytest.fixture
async def api(tmp_path: pathlib.Path) -> AsyncIterator[served_gateway.ServedGateway]:
    """A gateway over three nodes, with a sleeping session `s1`."""
    async with served_gateway.serve(tmp_path) as served:
        yield served


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((), errors.ApiKeyMissing),
        ((("authorization", "Basic user-key"),), errors.ApiKeyMissing),
        ((("authorization", "Bearer wrong"),), errors.ApiKeyInvalid),
        ((*served_gateway.USER, ("x-torpor-tenant", "other")), errors.OperatorOnly),
        ((*served_gateway.OPERATOR, ("x-torpor-tenant", "nobody")), errors.TenantNotFound),
        ((*served_gateway.OPERATOR, ("x-torpor-tenant", "other")), errors.SessionNotFound),
    ],
)
async def test_who_may_see_a_session(
    api: served_gateway.ServedGateway,
    metadata: tuple[tuple[str, str], ...],
    expected: type[errors.TorporError],
) -> None:
    """A key opens its own tenant; only an operator may name another, and sees only its."""
    request = sessions_pb2.GetSessionRequest(session_id="s1")
    assert isinstance(
        await served_gateway.refusal(api.sessions.GetSession(request, metadata=metadata)), expected
    )


async def test_calls_in_flight_are_bounded(api: served_gateway.ServedGateway) -> None:
    """With four turns under way a fifth call is refused, and admitted again once they are done."""
    opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    api.cluster.gate = lambda: opened
    under_way = [
        asyncio.ensure_future(
            api.sessions.SendMessage(
                served_gateway.send("x", f"m{i}"), metadata=served_gateway.USER
            )
        )
        for i in range(4)
    ]

    async def all_under_way() -> bool:
        return api.cluster.count("deliver") == 4

    await eventually.assert_eventually(all_under_way)
    request = sessions_pb2.GetSessionRequest(session_id="s1")
    error = await served_gateway.refusal(
        api.sessions.GetSession(request, metadata=served_gateway.USER)
    )
    assert isinstance(error, errors.TooManyRequests)
    opened.set_result(None)
    await asyncio.gather(*under_way)
    await api.sessions.GetSession(request, metadata=served_gateway.USER)


async def test_an_unexpected_error_tells_only_its_id(
    api: served_gateway.ServedGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client gets INTERNAL and an id, the log has the id and the cause."""

    async def broken(key: records.SessionKey) -> records.Head:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(api.store.sessions, "head", broken)
    request = sessions_pb2.GetSessionRequest(session_id="s1")
    error = await served_gateway.refusal(
        api.sessions.GetSession(request, metadata=served_gateway.USER)
    )
    assert isinstance(error, errors.Internal)
    assert "secret detail" not in error.message
    assert error.ids["error"] in caplog.text
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("method", ["Sessions/SendMessage", "Workspaces/WriteFile"])
async def test_what_cannot_be_decoded_is_an_invalid_argument(
    api: served_gateway.ServedGateway, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are no message get a typed refusal, and nothing in the log."""
    path, garbage = f"/torpor.v1.{method}", b"\xff" * 10
    if method == "Workspaces/WriteFile":
        call: Any = api.channel.stream_unary(path)(iter([garbage]), metadata=served_gateway.USER)
    else:
        call = api.channel.unary_unary(path)(garbage, metadata=served_gateway.USER)
    assert isinstance(await served_gateway.refusal(call), errors.InvalidField)
    assert not caplog.records


async def test_health_and_reflection_need_no_key(api: served_gateway.ServedGateway) -> None:
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


async def test_a_port_that_is_taken_is_a_clear_error(
    api: served_gateway.ServedGateway, tmp_path: pathlib.Path
) -> None:
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


async def test_two_gateways_share_one_activation(
    api: served_gateway.ServedGateway, tmp_path: pathlib.Path
) -> None:
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
                stub.SendMessage(served_gateway.send(f"{i}", f"m{i}"), metadata=served_gateway.USER)
                for i, stub in enumerate(stubs)
            ),
        )
    await second.stop(0)
    assert sorted(answer.version for answer in answers) == list(range(2, 14))
    head = await api.store.sessions.head(records.SessionKey("acme", "s1"))
    assert head.epoch == 1
    assert api.cluster.count("activate") <= 2


async def test_draining_needs_an_operator_and_empties_the_node(
    api: served_gateway.ServedGateway,
) -> None:
    """The call answers once the node has nothing left."""
    await api.sessions.SendMessage(served_gateway.send("x", "m1"), metadata=served_gateway.USER)
    head = await api.store.sessions.head(records.SessionKey("acme", "s1"))
    assert head.owner is not None
    request = admin_pb2.DrainNodeRequest(node=head.owner.node)
    assert isinstance(
        await served_gateway.refusal(api.admin.DrainNode(request, metadata=served_gateway.USER)),
        errors.OperatorOnly,
    )
    drained = await api.admin.DrainNode(request, metadata=served_gateway.OPERATOR)
    assert drained.node.draining
    assert drained.node.sessions == 0
    unknown = admin_pb2.DrainNodeRequest(node="nowhere")
    assert isinstance(
        await served_gateway.refusal(
            api.admin.DrainNode(unknown, metadata=served_gateway.OPERATOR)
        ),
        errors.NodeNotFound,
    )
    listed = await api.admin.ListNodes(
        admin_pb2.ListNodesRequest(), metadata=served_gateway.OPERATOR
    )
    assert [node.alive for node in listed.nodes] == [True, True, True]
