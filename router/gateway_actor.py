"""The Ray actor that a node's gateway runs in."""

import asyncio

import ray

from torpor import clock, deployment
from torpor.actors import calls, lane_calls, ray_calls
from torpor.router import directory, gateway
from torpor.storage import local_blobs, redis_store

#: Calls of Ray into this actor are few: start, stop.
CONCURRENCY_MAX = 8
#: Calls under way when a gateway is told to stop get this long to end.
STOP_GRACE_S = 5.0


class GatewayActor:
    """A detached Ray actor, one per node; stateless, any of them serves any session."""

    def __init__(self, place: deployment.Deployment) -> None:
        self._place = place
        self._gateway: gateway.Gateway | None = None
        self._lanes: lane_calls.LaneCalls | None = None
        self._store = redis_store.open(place)
        self._port = 0
        self._starting = asyncio.Lock()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. A gateway that listens already keeps its port."""
        async with self._starting:
            if self._gateway is None:
                self._gateway = await self._start(host, port)
        return self._port

    async def _start(self, host: str, port: int) -> gateway.Gateway:
        await self._store.check_durability()
        hints = directory.Directory()
        made = gateway.Gateway(
            self._place,
            self._store,
            local_blobs.LocalBlobStore(self._place.storage),
            self._reach(hints),
            clock.SystemClock(),
            hints=hints,
        )
        self._port = await made.start(host, port)
        return made

    def _reach(self, hints: directory.Directory) -> calls.Calls:
        others = ray_calls.RayCalls()
        if not self._place.lanes:
            return others
        self._lanes = lane_calls.LaneCalls(
            others,
            ray.get_runtime_context().get_node_id(),
            # Whoever calls the session next would only find out that nobody answers.
            on_end=lambda seat: hints.forget(seat.key, seat.epoch),
        )
        return self._lanes

    async def refresh(self) -> None:
        """Look at nodes and loads now: some have come into service."""
        if self._gateway is not None:
            await self._gateway.refresh()

    async def stop(self) -> None:
        """Refuse new calls, let those under way end."""
        if self._gateway is not None:
            await self._gateway.stop(STOP_GRACE_S)
        if self._lanes is not None:
            self._lanes.close()
