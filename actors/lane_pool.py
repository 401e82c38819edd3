"""Open lanes by the nonce of who is called, at most so many; opened once for all who ask."""

import asyncio
import collections
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from torpor import errors
from torpor.actors import lane

log = logging.getLogger(__name__)

#: Where no lane could be opened, none is tried for so long: it may cost a second each time.
AVOIDED_S = 30.0
#: Nonces avoided at a time.
AVOIDED_MAX = 1_024

#: What is told of the end of a lane.
OnEnd = Callable[[lane.Lane], None]


class LanePool:
    """Lanes of one gateway; lives on one event loop."""

    def __init__(self, lanes_max: int) -> None:
        self._lanes_max = lanes_max
        #: That used longest ago first.
        self._lanes: collections.OrderedDict[str, lane.Lane] = collections.OrderedDict()
        self._opening: dict[str, asyncio.Task[lane.Lane | None]] = {}
        #: Until when no lane is tried, by the loop's clock.
        self._avoided: collections.OrderedDict[str, float] = collections.OrderedDict()

    async def to(
        self,
        nonce: str,
        opens: Callable[[OnEnd], Coroutine[Any, Any, lane.Lane]],
        on_end: Callable[[], None],
    ) -> lane.Lane | None:
        """Return the lane to `nonce`, opened by `opens` if need be; None: there is none now.

        `on_end` is called when it is over, unless it was closed here.
        """
        known = self._lanes.get(nonce)
        if known is not None and not known.closed:
            self._lanes.move_to_end(nonce)
            return known
        opening = self._opening.get(nonce)
        if opening is None:
            if self._avoids(nonce) or not self._has_room():
                return None
            ended = functools.partial(self._ended, nonce, on_end)
            opening = asyncio.create_task(self._open(nonce, functools.partial(opens, ended)))
            self._opening[nonce] = opening
            opening.add_done_callback(functools.partial(self._opened, nonce))
        return await asyncio.shield(opening)

    def close(self) -> None:
        """End all connections."""
        for task in self._opening.values():
            task.cancel()
        for each in self._lanes.values():
            each.close()
        self._lanes.clear()

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
