"""How long a caller still waits, handed on from hop to hop."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from torpor import clock, errors

T = TypeVar("T")


class Deadline:
    """A moment of one clock."""

    def __init__(self, time: clock.Clock, at_s: float) -> None:
        self._clock = time
        #: On the clock's monotonic scale.
        self.at_s = at_s

    @classmethod
    def after(cls, time: clock.Clock, seconds: float) -> "Deadline":
        """Return the deadline that many seconds from now."""
        return cls(time, time.monotonic_s() + seconds)

    def left_s(self) -> float:
        """Return the seconds that remain, at least 0."""
        return max(0.0, self.at_s - self._clock.monotonic_s())

    def extend(self, other: "Deadline") -> None:
        """Move this deadline to the other one's moment if that is later."""
        self.at_s = max(self.at_s, other.at_s)

    def demand(self) -> float:
        """Return the seconds that remain.

        Raises:
            DeadlineExceeded: none do.
        """
        left_s = self.left_s()
        if left_s <= 0:
            raise errors.DeadlineExceeded
        return left_s

    async def bound(self, work: Awaitable[T]) -> T:
        """Await `work`, cancelling it at the deadline.

        Raises:
            DeadlineExceeded: it was not done by then.
        """
        try:
            async with asyncio.timeout(self.left_s()):
                return await work
        except TimeoutError:
            raise errors.DeadlineExceeded from None
