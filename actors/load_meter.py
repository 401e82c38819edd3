"""What a node's work costs, read from /proc."""

import os
import time
from collections.abc import Collection

import msgspec
import psutil

#: CPU use is averaged over about this long: shorter follows single turns, longer reacts to old
#: news.
SMOOTHING_S = 3.0
#: Finding all processes of a Ray node reads the whole process table, so it is done only this often.
RESCAN_S = 5.0

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of what the node may use."""

    cpu: float
    memory: float


class LoadMeter:
    """Smoothed CPU share, and used memory, of the machine or of one Ray node's processes."""

    def __init__(self, *, cpus: float, root_pid: int | None) -> None:
        """Measure the machine when `root_pid` is None, else that process and all below it."""
        self._cpus = max(cpus, 0.1)
        self._root_pid = root_pid
        self._seen: set[int] = set()
        self._pids: set[int] = set()
        self._scanned_s = float("-inf")
        self._spent: dict[int, float] = {}
        self._at_s = time.monotonic()
        self._cpu = 0.0
        self._spent_machine_s = _machine_cpu_s()

    def read(self, sessions: Collection[int] = ()) -> Reading:
        """Return the present load; call about once a second.

        `sessions` are pids that are known to be the node's without looking for them.
        """
        now_s = time.monotonic()
        elapsed_s = max(now_s - self._at_s, 1e-3)
        used = self._spent_since_last(now_s, sessions) / elapsed_s / self._cpus
        weight = min(1.0, elapsed_s / SMOOTHING_S)
        self._cpu += weight * (used - self._cpu)
        self._at_s = now_s
        memory = psutil.virtual_memory()
        return Reading(cpu=self._cpu, memory=1.0 - memory.available / memory.total)

    def _spent_since_last(self, now_s: float, sessions: Collection[int]) -> float:
        if self._root_pid is None:
            spent_s = _machine_cpu_s()
            used, self._spent_machine_s = spent_s - self._spent_machine_s, spent_s
            return used
        if now_s - self._scanned_s >= RESCAN_S:
            # A process counts from the second scan that finds it: starting one costs as much as
            # hundreds of turns, is over at once, and would hide what sessions really use.
            seen = _family({self._root_pid, *sessions})
            self._pids, self._seen = seen & self._seen, seen
            self._scanned_s = now_s
        spent = {
            pid: seconds
            for pid in {*self._pids, *sessions}
            if (seconds := process_cpu_s(pid)) is not None
        }
        # A process seen for the first time brings a past that is not this second's.
        used = sum(seconds - self._spent.get(pid, seconds) for pid, seconds in spent.items())
        self._spent = spent
        return max(used, 0.0)


def process_cpu_s(pid: int) -> float | None:
    """Return the CPU seconds that a process has used; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 — often: the fast way
            fields = file.read().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def process_rss_bytes(pid: int) -> int:
    """Return the resident bytes of a process; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 — as above
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _machine_cpu_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _family(roots: set[int]) -> set[int]:
    """Return processes and all below them. Sessions that were forked are not below the raylet."""
    parents = {process.pid: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
    family, found = set[int](), roots & parents.keys()
    while found:
        family |= found
        found = {pid for pid, parent in parents.items() if parent in found} - family
    return family
