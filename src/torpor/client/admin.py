"""What operators do."""

from torpor import ids
from torpor.client import connection, decoding, values
from torpor.v1 import admin_pb2


class Admin:
    """`client.admin`; its calls raise `OperatorOnly` unless the API key is an operator's."""

    def __init__(self, link: connection.Connection) -> None:
        self._link = link

    async def nodes(self, *, timeout_s: float | None = None) -> list[values.NodeInfo]:
        """Return all nodes by name."""
        response = await self._link.call(
            self._link.admin.ListNodes,
            admin_pb2.ListNodesRequest(),
            timeout_s=timeout_s,
            default_s=connection.READ_TIMEOUT_S,
        )
        return [decoding.node(node) for node in response.nodes]

    async def drain(self, node: str, *, timeout_s: float | None = None) -> values.NodeInfo:
        """Place no more sessions on a node and evict those on it.

        Returns when it is empty or the deadline is near; `sessions` says which.

        Raises:
            NodeNotFound
        """
        response = await self._link.call(
            self._link.admin.DrainNode,
            admin_pb2.DrainNodeRequest(node=node, request_id=ids.random_id("req")),
            timeout_s=timeout_s,
            default_s=connection.DRAIN_TIMEOUT_S,
        )
        return decoding.node(response.node)
