"""I3: whether the order of a history is one that the clients' clocks allow.

A session is one list that is appended to, so the history itself is the only candidate for a
linearization: append k comes before append k + 1, and what was read after k appends lies between
them. It is one if and only if nothing in that order began after something behind it had ended.
"""

import math
from typing import NamedTuple


class _Bound(NamedTuple):
    at_s: float
    #: Whose bound it is; 0 for an append whose end nobody was told.
    operation: int


class Order:
    """Operations of one session by their place in its history, and the bounds between them.

    Adding one costs constant time as long as operations come about in the order of their ends.
    """

    def __init__(self) -> None:
        # Slot 2k is append k, slot 2k + 1 all that was read after k appends.
        #: The latest beginning up to a slot; the earliest end from a slot on.
        self._begun: list[_Bound] = []
        self._ended: list[_Bound] = []

    def append(self, position: int, begun_s: float, ended_s: float, operation: int) -> int | None:
        """Add append number `position` (from 1); its end is infinite while nobody was told.

        Returns:
            The id of an operation that it contradicts, None if there is none.
        """
        return self._add(2 * position, begun_s, ended_s, operation)

    def read(self, position: int, begun_s: float, ended_s: float, operation: int) -> int | None:
        """Add what was read after `position` appends; returns as `append` does."""
        return self._add(2 * position + 1, begun_s, ended_s, operation)

    def _add(self, slot: int, begun_s: float, ended_s: float, operation: int) -> int | None:
        while len(self._begun) <= slot + 1:
            self._begun.append(self._begun[-1] if self._begun else _Bound(-math.inf, 0))
            self._ended.append(_Bound(math.inf, 0))
        # What shares a slot does not bind each other.
        before = self._begun[slot - 1] if slot else _Bound(-math.inf, 0)
        after = self._ended[slot + 1]
        for i in range(slot, len(self._begun)):
            if self._begun[i].at_s >= begun_s:
                break
            self._begun[i] = _Bound(begun_s, operation)
        for i in range(slot, -1, -1):
            if self._ended[i].at_s <= ended_s:
                break
            self._ended[i] = _Bound(ended_s, operation)
        if before.at_s > ended_s:
            return before.operation
        return after.operation if after.at_s < begun_s else None
