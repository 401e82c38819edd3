"""Which sessions leave a node."""

import msgspec
import pytest

from torpor.actors import eviction, slot_board
from torpor.actors.lifecycle import Phase

MB = 1 << 20
CALM = {"memory": 0.5, "memory_high": 0.8, "memory_low": 0.7, "memory_bytes": 1000 * MB}
PRESSED = CALM | {"memory": 0.85}


def _candidate(slot: str, quiet_s: float, phase: Phase = Phase.IDLE) -> eviction.Candidate:
    return eviction.Candidate(
        slot=slot,
        activity=slot_board.Activity(pid=1, phase=phase, turns=1, quiet_s=quiet_s),
        idle_timeout_s=300.0,
        rss_bytes=60 * MB,
    )


def _chosen(candidates: list[eviction.Candidate], how: dict[str, float]) -> list[str]:
    return [each.slot for each in eviction.choose(candidates, **how)]


def test_idle_time_decides_when_memory_is_plenty() -> None:
    """Those whose own idle time is over leave, the quietest first; nobody else does."""
    eager = msgspec.structs.replace(_candidate("eager", 2.0), idle_timeout_s=1.0)
    candidates = [_candidate("new", 299.9), eager, _candidate("old", 300.0)]
    assert _chosen(candidates, CALM) == ["old", "eager"]


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.IDLE], ids=lambda p: p.name)
def test_only_idle_sessions_leave(phase: Phase) -> None:
    """A session that boots, works or leaves is left alone, whatever the memory."""
    assert _chosen([_candidate("s", 9999.0, phase)], PRESSED) == []


def test_pressure_takes_the_quietest_and_no_more_than_needed() -> None:
    """Above the high mark as many of the quietest leave as bring it below the low mark."""
    # 0.85 - 0.70 of 1000 MB are 150 MB: three sessions of 60 MB.
    candidates = [_candidate(str(quiet), float(quiet)) for quiet in (10, 50, 30, 20, 40)]
    assert _chosen(candidates, PRESSED) == ["50", "40", "30"]


def test_pressure_counts_who_leaves_anyway() -> None:
    """What idle sessions give back is not taken from others once more."""
    candidates = [_candidate("a", 400.0), _candidate("b", 350.0), *map(_quiet, (30, 20))]
    assert _chosen(candidates, PRESSED) == ["a", "b", "30"]


def test_pressure_leaves_the_busy_alone() -> None:
    """A session that was used a moment ago would be back at once."""
    moment_ago = eviction.PRESSURE_QUIET_S_MIN / 2
    assert _chosen([_candidate("s", moment_ago)], PRESSED) == []


def test_few_leave_at_once() -> None:
    """However many may leave, only so many do in one round."""
    candidates = [_quiet(1000 + i) for i in range(3 * eviction.LEAVING_AT_ONCE_MAX)]
    assert len(_chosen(candidates, CALM)) == eviction.LEAVING_AT_ONCE_MAX


def _quiet(seconds: int) -> eviction.Candidate:
    return _candidate(str(seconds), float(seconds))
