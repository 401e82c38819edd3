"""`Calls` over lanes where an owner has one, and over others where it has none."""

import asyncio
import collections
import functools
import logging
import resource
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from torpor import errors
from torpor.actors import calls, lane, lane_frames, protocol
from torpor.storage import records

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Connections kept: more than the sessions that one gateway talks to within a minute.
LANES_MAX = 1_024
#: And at most this share of the files that the process may open: its clients need some, too.
FILES_SHARE = 4
#: Where no lane could be opened, none is tried for so long: it may cost a second each time.
AVOIDED_S = 30.0
#: Activations avoided at a time.
AVOIDED_MAX = 1_024


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
        self._lanes_max = min(lanes_max, _files_max() // FILES_SHARE)
        #: By the activation's nonce, that used longest ago first.
        self._lanes: collections.OrderedDict[str, lane.Lane] = collections.OrderedDict()
        self._opening: dict[str, asyncio.Task[lane.Lane | None]] = {}
        #: Until when no lane is tried, by the loop's clock.
        self._avoided: collections.OrderedDict[str, float] = collections.OrderedDict()
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
        return await _ask(way, kind, request, unpack, timeout_s=timeout_s)

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
        for task in self._opening.values():
            task.cancel()
        for each in self._lanes.values():
            each.close()
        self._lanes.clear()

    async def _lane(self, seat: protocol.Seat) -> lane.Lane | None:
        """Return the way to an activation; None: there is none now."""
        if not (seat.owner.lane and seat.nonce):
            return None
        known = self._known(seat.nonce)
        if known is not None:
            return known
        same_node = seat.owner.node == self._node
        ended = functools.partial(self._ended, seat.nonce, lambda: self._on_end(seat))
        opens = functools.partial(lane.Lane.open, seat, same_node=same_node, on_end=ended)
        return await self._opened_by(seat.nonce, opens)

    async def _agent_lane(self, node: records.NodeRecord) -> lane.Lane | None:
        """Return the way to a node's agent; None: there is none now."""
        if not node.agent_lane:
            return None
        nonce = node.incarnation
        known = self._known(nonce)
        if known is not None:
            return known
        opens = functools.partial(
            lane.Lane.connect,
            node.agent_actor,
            node.agent_lane,
            lane_frames.Secret(node.node, 0, nonce),
            same_node=node.node == self._node,
            on_end=functools.partial(self._ended, nonce, lambda: None),
        )
        return await self._opened_by(nonce, opens)

    def _known(self, nonce: str) -> lane.Lane | None:
        known = self._lanes.get(nonce)
        if known is None or known.closed:
            return None
        self._lanes.move_to_end(nonce)
        return known

    async def _opened_by(
        self, nonce: str, opens: Callable[[], Coroutine[Any, Any, lane.Lane]]
    ) -> lane.Lane | None:
        opening = self._opening.get(nonce)
        if opening is None:
            if self._avoids(nonce) or not self._has_room():
                return None
            opening = asyncio.create_task(self._open(nonce, opens))
            self._opening[nonce] = opening
            opening.add_done_callback(functools.partial(self._opened, nonce))
        return await asyncio.shield(opening)

    def _opened(self, nonce: str, opening: asyncio.Task[lane.Lane | None]) -> None:
        del self._opening[nonce]
        if not opening.cancelled():
            opening.exception()  # looked at here, for the case that all callers have left

    async def _open(
        self, nonce: str, opens: Callable[[], Coroutine[Any, Any, lane.Lane]]
    ) -> lane.Lane | None:
        try:
            made = await opens()
        except (OSError, TimeoutError, errors.TorporError, msgspec.MsgspecError) as error:
            log.info("no lane: %r", error, extra={"action": "no_lane"})
            self._avoid(nonce)
            return None
        if made.closed:
            # What is sent on it would be said to be in doubt, and never left.
            return None
        self._lanes[nonce] = made
        return made

    def _ended(self, nonce: str, tell: Callable[[], None], ended: lane.Lane) -> None:
        # One that was closed here, to make room, is not among them any more.
        if self._lanes.get(nonce) is ended:
            del self._lanes[nonce]
            tell()

    def _has_room(self) -> bool:
        """Whether one more connection may be opened; one that nobody uses goes if it must."""
        if len(self._lanes) + len(self._opening) < self._lanes_max:
            return True
        unused = next((name for name, each in self._lanes.items() if each.idle), None)
        if unused is not None:
            self._lanes.pop(unused).close()
        return unused is not None

    def _avoid(self, nonce: str) -> None:
        self._avoided[nonce] = asyncio.get_running_loop().time() + AVOIDED_S
        if len(self._avoided) > AVOIDED_MAX:
            self._avoided.popitem(last=False)

    def _avoids(self, nonce: str) -> bool:
        until_s = self._avoided.get(nonce, 0.0)
        if until_s <= asyncio.get_running_loop().time():
            self._avoided.pop(nonce, None)
            return False
        return True


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
        raise errors.Internal(f"the session's answer cannot be read: {error}") from error


def _files_max() -> int:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if files == resource.RLIM_INFINITY else files
