"""What the kernel tells of a process."""

import pathlib

#: First letters of a process's state: it is dead; it is stopped.
DEAD = ("", "Z", "X")
_STOPPED = ("T", "t")


def state(pid: int) -> str:
    """Return the letter of a process's state, empty if there is no such process."""
    return _fields(pid)[0]


def stands_still(pid: int) -> bool:
    """Whether a process is dead or stopped."""
    return state(pid) in (*DEAD, *_STOPPED)


def started(pid: int) -> int:
    """Return when a process was started, in the kernel's ticks; 0 if there is no such process."""
    return int(_fields(pid)[19])


def _fields(pid: int) -> list[str]:
    """Return what /proc tells of a process, from its state on."""
    try:
        line = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ["", *["0"] * 19]
    # Its name, in parentheses, may hold anything.
    return line.rpartition(")")[2].split()
