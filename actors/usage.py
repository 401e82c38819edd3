"""What a turn takes of the machine, measured from inside its process."""

import os
import resource

from torpor.storage import records

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def cpu_ms() -> int:
    """Return the CPU milliseconds of this process and of its children that have ended."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int(1000 * (used.ru_utime + used.ru_stime + children.ru_utime + children.ru_stime))


def after_turn(before: records.Usage, *, cpu_ms: int, busy_ms: int) -> records.Usage:
    """Return the session's usage after one more turn that took this much."""
    return records.Usage(
        turns=before.turns + 1,
        cpu_ms=before.cpu_ms + cpu_ms,
        busy_ms=before.busy_ms + busy_ms,
        rss_bytes=_rss_bytes(),
    )


def _rss_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 — once a turn: the fast way
        return int(file.read().split()[1]) * _PAGE_BYTES
