"""Where the time of a wake goes, from the caller's first word to the first turn."""

import time


class Stopwatch:
    """Laps in milliseconds, in the order in which they ended."""

    def __init__(self, laps_ms: dict[str, float] | None = None) -> None:
        """`laps_ms` are those that others have taken before."""
        self.laps_ms = dict(laps_ms or {})
        self._since_s = time.monotonic()

    def lap(self, name: str) -> None:
        """End a lap; the next begins."""
        now_s = time.monotonic()
        self.laps_ms[name] = round((now_s - self._since_s) * 1000, 2)
        self._since_s = now_s

    def restart(self) -> None:
        """Leave out what was since the last lap."""
        self._since_s = time.monotonic()
