"""`Calls` over lanes, to owners and node agents that have one, and over others to the rest."""

import functools
import resource
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from torpor import errors
from torpor.actors import agent_lane, calls, lane, lane_frames, lane_pool, protocol
from torpor.storage import records

T = TypeVar("T")

#: Connections kept to sessions: more than those that one gateway talks to within a minute. And as
#: many to node agents, of which each node has one.
LANES_MAX = 1_024
#: Of either at most this share of the files that the process may open: clients need some, too.
FILES_SHARE = 4


class LaneCalls:
    """Calls of one gateway; lives on one event loop.

    A call that could not be sent goes to `others`. One that was sent is never sent again.
    """

    def __init__(
        self,
        others: calls.Calls,
        node: str,
        *,
        on_end: Callable[[protocol.Seat], None] = lambda _: None,
        lanes_max: int = LANES_MAX,
    ) -> None:
        """`node` is the gateway's own. `on_end` hears of activations whose process has ended."""
        self._others = others
        self._node = node
        self._on_end = on_end
        lanes_max = min(lanes_max, _files_max() // FILES_SHARE)
        self._owners = lane_pool.LanePool(lanes_max)
        #: Apart, so that none of the few is closed for one of the many.
        self._agents = lane_pool.LanePool(lanes_max)
        self.bury = others.bury
        self.inspect_agent = others.inspect_agent
        self.drain = others.drain

    async def activate(
        self, node: records.NodeRecord, request: protocol.Activate, *, timeout_s: float
    ) -> protocol.Activated:
        """Ask a node's agent to wake a session."""
        way = await self._agent_lane(node)
        if way is None:
            return await self._others.activate(node, request, timeout_s=timeout_s)
        kind, unpack = lane_frames.Kind.ACTIVATE, protocol.unpack_activated
        try:
            return await _ask(way, kind, request, unpack, timeout_s=timeout_s)
        except errors.MailboxFull as error:
            raise errors.NoCapacity(
                f"node {node.name} is asked for too much at once", node=node.name
            ) from error

    async def deliver(
        self, seat: protocol.Seat, request: protocol.Deliver, *, timeout_s: float
    ) -> protocol.Delivered:
        """Hand a message to the owner and await the committed turn."""
        way = await self._lane(seat)
        if way is None:
            return await self._others.deliver(seat, request, timeout_s=timeout_s)
        kind, unpack = lane_frames.Kind.DELIVER, protocol.unpack_delivered
        return await _ask(way, kind, request, unpack, timeout_s=timeout_s)

    async def control(
        self, seat: protocol.Seat, request: protocol.Control, *, timeout_s: float
    ) -> protocol.Controlled:
        """Evict, pause or resume through the owner."""
        way = await self._lane(seat)
        if way is None:
            return await self._others.control(seat, request, timeout_s=timeout_s)
        kind, unpack = lane_frames.Kind.CONTROL, protocol.unpack_controlled
        return await _ask(way, kind, request, unpack, timeout_s=timeout_s)

    async def place_file(
        self, seat: protocol.Seat, request: protocol.PlaceFile, *, timeout_s: float
    ) -> protocol.Placed:
        """Put an uploaded blob into the owner's workspace."""
        way = await self._lane(seat)
        if way is None:
            return await self._others.place_file(seat, request, timeout_s=timeout_s)
        kind, unpack = lane_frames.Kind.PLACE_FILE, protocol.unpack_placed
        return await _ask(way, kind, request, unpack, timeout_s=timeout_s)

    async def drain_inbox(self, seat: protocol.Seat, *, timeout_s: float) -> None:
        """Tell the owner to look into its inbox."""
        way = await self._lane(seat)
        if way is None:
            return await self._others.drain_inbox(seat, timeout_s=timeout_s)
        kind, unpack = lane_frames.Kind.DRAIN_INBOX, protocol.unpack_done
        return await _ask(way, kind, seat.epoch, unpack, timeout_s=timeout_s)

    def close(self) -> None:
        """End all connections."""
        self._owners.close()
        self._agents.close()

    async def _lane(self, seat: protocol.Seat) -> lane.Lane | None:
        """Return the way to an activation; None: there is none now."""
        if not (seat.owner.lane and seat.nonce):
            return None
        opens = functools.partial(self._open_to_owner, seat)
        return await self._owners.to(seat.nonce, opens, lambda: self._on_end(seat))

    def _open_to_owner(
        self, seat: protocol.Seat, on_end: lane_pool.OnEnd
    ) -> Coroutine[Any, Any, lane.Lane]:
        return lane.Lane.open(seat, same_node=seat.owner.node == self._node, on_end=on_end)

    async def _agent_lane(self, node: records.NodeRecord) -> lane.Lane | None:
        """Return the way to a node's agent; None: there is none now."""
        if not (node.agent_lane and node.agent_nonce):
            return None
        opens = functools.partial(self._open_to_agent, node)
        return await self._agents.to(node.agent_nonce, opens, lambda: None)

    def _open_to_agent(
        self, node: records.NodeRecord, on_end: lane_pool.OnEnd
    ) -> Coroutine[Any, Any, lane.Lane]:
        return lane.Lane.connect(
            node.agent_actor,
            node.agent_lane,
            lane_frames.Secret(node.node, 0, node.agent_nonce),
            same_node=node.node == self._node,
            on_end=on_end,
            calls_max=agent_lane.CALLS_MAX,
        )


async def _ask(
    way: lane.Lane,
    kind: lane_frames.Kind,
    request: object,
    unpack: Callable[[bytes], T | protocol.Refusal],
    *,
    timeout_s: float,
) -> T:
    answer = await way.call(kind, protocol.pack(request), timeout_s=timeout_s)
    try:
        return protocol.accept(unpack(answer))
    except msgspec.MsgspecError as error:
        raise errors.Internal(f"the answer to {kind.name} cannot be read: {error}") from error


def _files_max() -> int:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if files == resource.RLIM_INFINITY else files
