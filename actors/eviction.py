"""Which sessions should leave a node, and which processes are stuck: pure functions."""

from collections.abc import Sequence

import msgspec

from torpor.actors import lifecycle, slot_board

#: Under memory pressure even so quiet a session stays: it would be back at once.
PRESSURE_QUIET_S_MIN = 1.0
#: Leaving costs CPU; so many at a time keep the node answering.
LEAVING_AT_ONCE_MAX = 4
#: A process whose session has ended goes by itself within this, or is killed: its agent's
#: `on_evict` has 5 s, and what it wrote is read once more.
ENDED_GRACE_S = 15.0
#: A process gives up a turn at its time; one that has not after this much more is asked whether it
#: answers at all.
HUNG_GRACE_S = 30.0


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


def has_ended(activity: slot_board.Activity, _turn_timeout_s: float) -> bool:
    """Whether the session has ended and its process has not, in all the time it had."""
    return activity.phase is lifecycle.Phase.ENDED and activity.quiet_s > ENDED_GRACE_S


def hangs(activity: slot_board.Activity, turn_timeout_s: float) -> bool:
    """Whether its own process should have given up the turn long ago."""
    working = activity.phase in (lifecycle.Phase.WORKING, lifecycle.Phase.RELEASING)
    return working and activity.quiet_s > turn_timeout_s + HUNG_GRACE_S
