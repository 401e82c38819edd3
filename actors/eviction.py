"""Which sessions should leave a node, as a pure function."""

from collections.abc import Sequence

import msgspec

from torpor.actors import lifecycle, slot_board

#: Under memory pressure even so quiet a session stays: it would be back at once.
PRESSURE_QUIET_S_MIN = 1.0
#: Leaving costs CPU; so many at a time keep the node answering.
LEAVING_AT_ONCE_MAX = 4


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A slot as the node agent sees it."""

    slot: str
    activity: slot_board.Activity
    idle_timeout_s: float
    rss_bytes: int


def choose(
    candidates: Sequence[Candidate],
    *,
    memory: float,
    memory_high: float,
    memory_low: float,
    memory_bytes: int,
) -> list[Candidate]:
    """Return the sessions to ask to leave now, the quietest first.

    Those whose idle time is over; and, when used memory (0 to 1 of `memory_bytes`) is above
    `memory_high`, as many of the quietest as bring it below `memory_low`.
    """
    idle = sorted(
        (each for each in candidates if each.activity.phase is lifecycle.Phase.IDLE),
        key=lambda each: -each.activity.quiet_s,
    )
    leaving = [each for each in idle if each.activity.quiet_s >= each.idle_timeout_s]
    if memory >= memory_high:
        excess_bytes = (memory - memory_low) * memory_bytes - sum(e.rss_bytes for e in leaving)
        for each in idle:
            if excess_bytes <= 0:
                break
            if each not in leaving and each.activity.quiet_s >= PRESSURE_QUIET_S_MIN:
                leaving.append(each)
                excess_bytes -= each.rss_bytes
    return leaving[:LEAVING_AT_ONCE_MAX]
