"""What a turn takes of the machine."""

from torpor.actors import usage
from torpor.storage import records


def test_usage_adds_up() -> None:
    """A turn adds itself, its CPU and its time; memory is the present one."""
    before = records.Usage(turns=3, cpu_ms=100, busy_ms=1000, rss_bytes=1)
    now = usage.after_turn(before, cpu_ms=20, busy_ms=50)
    assert (now.turns, now.cpu_ms, now.busy_ms) == (4, 120, 1050)
    assert now.rss_bytes > 1 << 20
