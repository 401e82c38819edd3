"""A whole gateway with its gRPC services, over a cluster in this process and a store in memory."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from torpor import clock, deployment, errors, status
from torpor.router import gateway
from torpor.storage import local_blobs, memory_store, records
from torpor.testing import in_process_cluster
from torpor.v1 import (
    admin_pb2_grpc,
    agents_pb2,
    agents_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    workspaces_pb2_grpc,
)

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator, Awaitable

#: What calls of the tenant `acme` carry: a user's, and an operator's.
USER = (("authorization", "Bearer user-key"),)
OPERATOR = (("authorization", "Bearer operator-key"),)


class ServedGateway(NamedTuple):
    """A running gateway and what is around it."""

    gateway: gateway.Gateway
    store: memory_store.MemoryStore
    cluster: in_process_cluster.InProcessCluster
    place: deployment.Deployment
    channel: grpc.aio.Channel
    port: int

    @property
    def sessions(self) -> sessions_pb2_grpc.SessionsAsyncStub:
        """The service as its clients call it."""
        return sessions_pb2_grpc.SessionsStub(self.channel)

    @property
    def workspaces(self) -> workspaces_pb2_grpc.WorkspacesAsyncStub:
        """The service as its clients call it."""
        return workspaces_pb2_grpc.WorkspacesStub(self.channel)

    @property
    def agents(self) -> agents_pb2_grpc.AgentsAsyncStub:
        """The service as its clients call it."""
        return agents_pb2_grpc.AgentsStub(self.channel)

    @property
    def admin(self) -> admin_pb2_grpc.AdminAsyncStub:
        """The service as its clients call it."""
        return admin_pb2_grpc.AdminStub(self.channel)


@contextlib.asynccontextmanager
async def serve(folder: pathlib.Path) -> AsyncIterator[ServedGateway]:
    """Serve three nodes with the tenants `acme` and `other`, an agent and a session `s1`."""
    place = deployment.Deployment(
        store_url="",
        storage=folder / "shared",
        scratch=folder / "scratch",
        signing_key_file=folder / "key",
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
    made = gateway.Gateway(place, store, blobs, cluster, clock.SystemClock())
    port = await made.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        served = ServedGateway(made, store, cluster, place, channel, port)
        await served.agents.RegisterAgent(
            agents_pb2.RegisterAgentRequest(import_path="examples:Echo"), metadata=USER
        )
        await served.sessions.CreateSession(
            sessions_pb2.CreateSessionRequest(agent="echo", session_id="s1", request_id="r1"),
            metadata=USER,
        )
        yield served
    await made.stop(0)


def send(text: str, request_id: str, **fields: Any) -> sessions_pb2.SendMessageRequest:
    """Return a message to the session `s1`."""
    fields = {"session_id": "s1", **fields}
    return sessions_pb2.SendMessageRequest(text=text, request_id=request_id, **fields)


async def refusal(answer: Awaitable[Any]) -> errors.TorporError:
    """Return the error that a call ends with.

    Raises:
        AssertionError: it ends well.
    """
    try:
        answered = await answer
    except grpc.aio.AioRpcError as error:
        return status.from_rpc_error(error)
    raise AssertionError(f"not refused: {answered}")
