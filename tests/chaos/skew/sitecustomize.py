"""Makes a Python process's wall clock wrong by what a file says. Python runs this at its start."""

import os
import pathlib
import time

#: Names the file: whole seconds, negative for a clock that is behind.
VARIABLE = "CHAOS_CLOCK"
#: A jump is seen within this.
_CACHED_S = 0.2


def _install(path: pathlib.Path) -> None:
    real_ns, monotonic_s = time.time_ns, time.monotonic
    offset_ns, read_at_s = 0, float("-inf")

    def time_ns() -> int:
        nonlocal offset_ns, read_at_s
        now_s = monotonic_s()
        if now_s - read_at_s > _CACHED_S:
            # Threads may both read it; either is right.
            offset_ns, read_at_s = int(path.read_text()) * 10**9, now_s
        return real_ns() + offset_ns

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 10**9


if _named := os.environ.get(VARIABLE):
    _install(pathlib.Path(_named))
