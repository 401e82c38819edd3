"""A gateway: the gRPC server, and everything that one of them needs, put together."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from torpor import errors, limits
from torpor.router import (
    activator,
    admin_service,
    agents_service,
    auth,
    cluster_view,
    control,
    directory,
    interceptors,
    routing,
    sessions_service,
    uploads,
    wake_sweeper,
    waking,
    watching,
    workspaces_service,
)
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

if TYPE_CHECKING:
    from torpor import clock, deployment
    from torpor.actors import calls
    from torpor.storage import blobs, store

_SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (sessions_pb2, "Sessions"),
        (workspaces_pb2, "Workspaces"),
        (agents_pb2, "Agents"),
        (admin_pb2, "Admin"),
    )
)

_OPTIONS = (
    ("grpc.max_receive_message_length", limits.GRPC_REQUEST_BYTES_MAX),
    ("grpc.max_send_message_length", limits.GRPC_RESPONSE_BYTES_MAX),
    # Clients ping every 30 s, also while nothing is under way; by default they would be sent away.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 15_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # And so does the server, to notice watchers that are gone.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    # Two gateways on one port would be a mistake.
    ("grpc.so_reuseport", 0),
)


#: Calls besides those in flight: watchers, and calls not yet known to be anybody's.
STREAMS_MAX = limits.WATCHERS_MAX + 1_000


class Gateway:
    """One gateway: stateless but for hints, so any of them serves any session.

    It lives on the event loop that calls `start`.
    """

    def __init__(
        self,
        place: deployment.Deployment,
        stored: store.Store,
        blob_store: blobs.BlobStore,
        reach: calls.Calls,
        time: clock.Clock,
        rng: random.Random | None = None,
        hints: directory.Directory | None = None,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        hints = directory.Directory() if hints is None else hints
        self._deployment = place
        self._store = stored
        self._blobs = blob_store
        self._calls = reach
        self._clock = time
        self._view = cluster_view.ClusterView(stored.nodes, time)
        self._activator = activator.Activator(stored, reach, self._view, hints, time, rng)
        self._router = routing.Router(
            stored.sessions, reach, self._activator, hints, self._view.office
        )
        self._waker = waking.Waker(stored, self._router, time)
        self._control = control.Control(
            stored, reach, self._activator, hints, self._view.office, self._waker, time
        )
        self._sweeper = wake_sweeper.WakeSweeper(stored, self._waker, time, rng)
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._background: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> int:
        """Listen and serve; returns the port, which the system chooses if `port` is 0.

        Raises:
            FailedPrecondition: the port is taken.
            StoreUnavailable
        """
        await self._view.refresh()
        await asyncio.to_thread(
            uploads.clear,
            self._deployment.scratch,
            # No call, and so no upload of another gateway on this machine, lasts longer.
            older_than_s=interceptors.DEADLINE_MAX_S,
        )
        server = grpc.aio.server(
            interceptors=self._interceptors(),
            options=_OPTIONS,
            maximum_concurrent_rpcs=self._deployment.calls_in_flight_max + STREAMS_MAX,
        )
        self._add_services(server)
        try:
            bound = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            bound = 0
        if not bound:
            raise errors.FailedPrecondition(
                f"cannot listen on {host}:{port}: another program has the port, or the address is "
                "not this machine's; choose another gateway_port or end the other program",
                port=port,
            )
        await server.start()
        self._server = server
        for service in ("", *_SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._background = [
            asyncio.create_task(self._view.run(), name="cluster view"),
            asyncio.create_task(self._sweeper.run(), name="wake sweeper"),
        ]
        return bound

    async def refresh(self) -> None:
        """Look at nodes and loads now instead of within the second.

        Raises:
            StoreUnavailable
        """
        await self._view.refresh()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those under way end within `grace_s`, then end the rest."""
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(grace_s)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._waker.close()
        await self._control.close()
        await self._activator.close()

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        authenticator = auth.Authenticator(self._store.catalog, self._clock)
        return [
            interceptors.GuardInterceptor(guard)
            for guard in (
                interceptors.tell_errors,
                interceptors.limit_time(self._clock),
                interceptors.authenticate(authenticator),
                interceptors.admit(self._deployment.calls_in_flight_max),
            )
        ]

    def _add_services(self, server: grpc.aio.Server) -> None:
        sessions_pb2_grpc.add_SessionsServicer_to_server(
            sessions_service.SessionsService(
                stored=self._store,
                blob_store=self._blobs,
                router=self._router,
                waker=self._waker,
                decisions=self._control,
                watchers=watching.Watching(self._store, self._blobs, self._clock),
                view=self._view,
                storage=self._deployment.storage,
                time=self._clock,
            ),
            server,
        )
        workspaces_pb2_grpc.add_WorkspacesServicer_to_server(
            workspaces_service.WorkspacesService(
                sessions=self._store.sessions,
                blob_store=self._blobs,
                router=self._router,
                wake=self._activator,
                scratch=self._deployment.scratch,
            ),
            server,
        )
        agents_pb2_grpc.add_AgentsServicer_to_server(
            agents_service.AgentsService(
                stored=self._store, reach=self._calls, view=self._view, time=self._clock
            ),
            server,
        )
        admin_pb2_grpc.add_AdminServicer_to_server(
            admin_service.AdminService(
                nodes=self._store.nodes, reach=self._calls, time=self._clock
            ),
            server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME), server)
