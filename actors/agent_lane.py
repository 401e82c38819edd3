"""The lane of a node's agent: gateways wake sessions by it, without Ray."""

import logging
from collections.abc import Awaitable, Callable

from torpor import errors, ids
from torpor.actors import lane_address, lane_frames, lane_server, protocol

log = logging.getLogger(__name__)

Activate = Callable[[protocol.Activate], Awaitable[protocol.Activated | protocol.Refusal]]


class AgentLane:
    """Listens for gateways; who knows the agent's incarnation may ask."""

    def __init__(self, node: str, activate: Activate) -> None:
        self._node = node
        self._activate = activate
        self._server: lane_server.LaneServer | None = None
        #: Empty while it does not listen.
        self.address = ""

    async def listen(self, host: str) -> None:
        """Listen at an address of this node, once; without a lane gateways ask by Ray."""
        if self._server is not None:
            return
        # Nobody knows what to say before the agent is in office.
        self._server = lane_server.LaneServer(self._secret(ids.nonce()), self._serve)
        try:
            self.address = await self._server.listen(host, lane_address.sockets_folder())
        except OSError as error:
            log.warning("no lane: %s", error, extra={"action": "no_lane"})

    def enter(self, incarnation: str) -> None:
        """Let those in who know the agent's new incarnation, and nobody else any more."""
        if self._server is not None:
            self._server.secrets = [self._secret(incarnation)]

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    def _secret(self, incarnation: str) -> lane_frames.Secret:
        return lane_frames.Secret(self._node, 0, incarnation)

    async def _serve(self, kind: lane_frames.Kind, payload: bytes) -> bytes:
        if kind is not lane_frames.Kind.ACTIVATE:
            return protocol.pack(protocol.refuse(errors.Internal("not for a node's agent")))
        return protocol.pack(await self._activate(protocol.unpack_activate(payload)))
