"""When a failed call is made again: exponential backoff with full jitter."""

import random
from collections.abc import Callable

import msgspec


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how fast a call is repeated."""

    #: Calls altogether. With the waits below they span about 15 s, longer than a node's lease: a
    #: call outlives the loss of the node that its session was on.
    attempts_max: int = 12
    #: The longest first wait; each further one may be twice as long.
    first_s: float = 0.1
    #: No wait is longer.
    most_s: float = 5.0

    def delay_s(
        self,
        failures: int,
        *,
        at_least_s: float = 0.0,
        uniform: Callable[[], float] = random.random,
    ) -> float:
        """Return how long to wait after `failures` (from 1) failed calls.

        The jitter is full, so that clients which failed together do not come back together; what
        the server asked for comes first and is not jittered away.
        """
        ceiling_s = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return at_least_s + ceiling_s * uniform()
