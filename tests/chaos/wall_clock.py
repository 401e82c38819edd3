"""A wall clock that jumps at run time under the programs that were started with it.

Under a store, libfaketime is loaded before anything else: it adds an offset to the time that the
program reads, and reads the offset from a file once a second. Python would not bear that (its
sleep fails), so there a module that Python runs at its start does the same. Monotonic time is left
alone.
"""

import os
import pathlib

#: Where Debian's package `libfaketime` puts it, and where others do.
_PLACES = ("usr/lib/*-linux-gnu/faketime", "usr/lib64/faketime", "usr/lib/faketime")
_NAME = "libfaketimeMT.so.1"
#: Besides the second under way, for so long a program goes on with the offset that it knows.
_CACHED_S = 0
#: When every program has seen a jump: the library compares whole seconds.
SEEN_AFTER_S = _CACHED_S + 1.5
#: Has the module for Python, which reads the variable.
_SKEW = pathlib.Path(__file__).with_name("skew")
_PYTHON_VARIABLE = "CHAOS_CLOCK"
#: What the processes of a program share lies here, named after the first of them.
_SHARED = pathlib.Path("/dev/shm")  # noqa: S108 - the library's choice


class WallClock:
    """The clock of some programs: those that are started with its environment."""

    def __init__(self, path: pathlib.Path) -> None:
        """Describe a clock that goes right; `path` is the file that will hold its offset."""
        self._path = path
        self.jump_to(0)

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a store that is to have this clock; none without the library."""
        found = library()
        if found is None:
            return {}
        return {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": str(_CACHED_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    @property
    def python_environment(self) -> dict[str, str]:
        """Variables for Python programs that are to have this clock, with all that they start.

        `time.time` and `time.time_ns` have it, `datetime` and what is not Python have not.
        """
        path = os.pathsep.join(filter(None, (str(_SKEW), os.environ.get("PYTHONPATH"))))
        return {"PYTHONPATH": path, _PYTHON_VARIABLE: str(self._path)}

    def jump_to(self, offset_s: int) -> None:
        """Let the clock go wrong by so many seconds; seen within `SEEN_AFTER_S`."""
        # Renamed into place: a program must not read half of it.
        hidden = self._path.with_suffix(".new")
        hidden.write_text(f"{offset_s:+d}\n")
        hidden.replace(self._path)


def library() -> pathlib.Path | None:
    """Return the library, if this machine has it."""
    root = pathlib.Path("/")
    return next((path for place in _PLACES for path in root.glob(f"{place}/{_NAME}")), None)


def remove_left_overs() -> None:
    """Remove what killed programs shared: the library does so only when they end in order."""
    for path in (*_SHARED.glob("faketime_shm_*"), *_SHARED.glob("sem.faketime_sem_*")):
        if not pathlib.Path("/proc", path.name.rpartition("_")[2]).exists():
            path.unlink(missing_ok=True)
