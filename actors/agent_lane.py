"""The lane of a node's agent: gateways wake sessions by it, without Ray."""

import logging
from collections.abc import Awaitable, Callable

from torpor import errors, ids
from torpor.actors import lane_address, lane_frames, lane_server, protocol

log = logging.getLogger(__name__)

#: Calls in work for one gateway: more than it has in flight. What is too much the agent itself
#: refuses, so that gateways ask elsewhere and tenants get their share.
CALLS_MAX = 4_096

Activate = Callable[[protocol.Activate], Awaitable[protocol.Activated | protocol.Refusal]]


class AgentLane:
    """Listens for gateways; who knows the nonce of the agent's term may ask."""

    def __init__(self, node: str, activate: Activate) -> None:
        self._node = node
        self._activate = activate
        self._server: lane_server.LaneServer | None = None
        #: Empty while it does not listen.
        self.address = ""
        #: Of the agent's term, told in its node's record; the incarnation stands in every head.
        self.nonce = ""

    async def listen(self, host: str) -> None:
        """Listen at an address of this node, once; without a lane gateways ask by Ray."""
        if self._server is not None:
            return
        # Nobody knows what to say before the agent is in office.
        self._server = lane_server.LaneServer(
            self._secret(ids.nonce()), self._serve, calls_max=CALLS_MAX
        )
        try:
            self.address = await self._server.listen(host, lane_address.sockets_folder())
        except OSError as error:
            log.warning("no lane: %s", error, extra={"action": "no_lane"})

    def enter(self) -> None:
        """Begin a term: what was known of the last one is of no use any more."""
        self.nonce = ids.nonce()
        if self._server is not None:
            self._server.renew(self._secret(self.nonce))

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    def _secret(self, nonce: str) -> lane_frames.Secret:
        return lane_frames.Secret(self._node, 0, nonce)

    async def _serve(self, kind: lane_frames.Kind, payload: bytes) -> bytes:
        if kind is not lane_frames.Kind.ACTIVATE:
            return protocol.pack(protocol.refuse(errors.Internal("not for a node's agent")))
        return protocol.pack(await self._activate(protocol.unpack_activate(payload)))
