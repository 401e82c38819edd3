"""The service `torpor.v1.Admin`: nodes, for operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor import errors
from torpor.router import call, convert, fields
from torpor.v1 import admin_pb2, admin_pb2_grpc

if TYPE_CHECKING:
    from torpor import clock
    from torpor.actors import calls
    from torpor.router import interceptors
    from torpor.storage import records, store

#: Loads are published once a second.
POLL_S = 0.5
#: A node agent that lives takes the order within this.
DRAIN_TIMEOUT_S = 10.0


class AdminService(admin_pb2_grpc.AdminServicer):
    """For operators: the API key must be an operator's."""

    def __init__(self, *, nodes: store.Nodes, reach: calls.Calls, time: clock.Clock) -> None:
        self._nodes = nodes
        self._calls = reach
        self._clock = time

    async def ListNodes(
        self, request: admin_pb2.ListNodesRequest, context: interceptors.Context
    ) -> admin_pb2.ListNodesResponse:
        """Return all announced nodes."""
        call.identity.get().demand_operator()
        views = await self._nodes.views()
        return admin_pb2.ListNodesResponse(nodes=[convert.node(view) for view in views])

    async def DrainNode(
        self, request: admin_pb2.DrainNodeRequest, context: interceptors.Context
    ) -> admin_pb2.DrainNodeResponse:
        """Empty a node; answers when it is empty, or at the deadline with what is left on it."""
        call.identity.get().demand_operator()
        fields.request_id(request.request_id)
        until = call.until.get()
        view = await self._view(request.node)
        node = view.record.node
        timeout_s = min(DRAIN_TIMEOUT_S, until.demand())
        await self._calls.drain(node, timeout_s=timeout_s)
        while not _empty(view) and until.left_s() > POLL_S:
            await self._clock.sleep(POLL_S)
            view = await self._view(node)
        return admin_pb2.DrainNodeResponse(node=convert.node(view))

    async def _view(self, node: str) -> records.NodeView:
        for view in await self._nodes.views():
            if node in (view.record.node, view.record.name):
                return view
        raise errors.NodeNotFound(node=node)


def _empty(view: records.NodeView) -> bool:
    load = view.load
    drained = load is not None and load.draining and not load.sessions and not load.activating
    return drained or not view.alive
