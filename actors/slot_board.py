"""A few bytes that a session process shares with its node's agent.

The agent looks at every session once a second. Asking each by a call would cost milliseconds of CPU
a piece; a file in the page cache costs next to nothing. It informs, it decides nothing that must be
right: an eviction is asked for by a call, and the session itself says no when it is busy.
"""

import mmap
import os
import pathlib
import struct
import time
from typing import Self

import msgspec

from torpor.actors import lifecycle

#: pid, phase, turns, last activity on the machine's monotonic clock in ns.
_LAYOUT = struct.Struct("<iiqq")
_PHASES = {int(phase): phase for phase in lifecycle.Phase}


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """What the board says."""

    pid: int
    phase: lifecycle.Phase
    turns: int
    #: Seconds since something was last begun or ended.
    quiet_s: float


class SlotBoard:
    """The writing side, in the session process."""

    def __init__(self, path: pathlib.Path, pid: int) -> None:
        self._pid = pid
        self._turns = 0
        with path.open("wb+") as file:
            file.write(bytes(_LAYOUT.size))
            file.flush()
            self._page = mmap.mmap(file.fileno(), _LAYOUT.size)
        self.show(lifecycle.Phase.BOOTING)

    def show(self, phase: lifecycle.Phase, *, turns_more: int = 0) -> None:
        """Publish the phase, and that something happened now."""
        self._turns += turns_more
        _LAYOUT.pack_into(self._page, 0, self._pid, phase, self._turns, time.monotonic_ns())


class SlotBoardReader:
    """The reading side, in the node agent."""

    def __init__(self, path: pathlib.Path) -> None:
        # Not mapped: agent code may cut the file, and reading a page that is gone kills the reader.
        self._file = path.open("rb", buffering=0)

    @classmethod
    def open(cls, path: pathlib.Path) -> Self | None:
        """Return a reader; None while the session process has not made its board."""
        try:
            return cls(path)
        except FileNotFoundError:
            return None

    def read(self) -> Activity:
        """Return what the board says now; nothing that it cannot say is believed."""
        said = os.pread(self._file.fileno(), _LAYOUT.size, 0)
        pid, phase, turns, at_ns = _LAYOUT.unpack(said.ljust(_LAYOUT.size, b"\0"))
        return Activity(
            pid=pid,
            phase=_PHASES.get(phase, lifecycle.Phase.BOOTING),
            turns=turns,
            quiet_s=max(0.0, (time.monotonic_ns() - at_ns) / 1e9),
        )

    def close(self) -> None:
        """Let the file go."""
        self._file.close()
