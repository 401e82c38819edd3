"""Named points that a message passes on its way: for tests that break things exactly there.

Every point is a call of `reach`, which does nothing unless the environment names a folder. With
one, each process appends what it passes to a file of its own there, and a file named like a point
in `armed/` makes the next process that passes it die, freeze or wait. A new point is one member
and one call; the tests of crash points want to know what leads past it.
"""

import collections
import contextlib
import enum
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec

#: The folder of the records and of what is armed. Set before a process starts, or never.
VARIABLE = "TORPOR_PROBES"
#: Below the folder: one file for each point that is armed, and what they become once they fired.
ARMED = "armed"
FIRED = "fired"
#: Name ending of a process's record: one JSON object a line.
RECORD = ".jsonl"


class Point(enum.StrEnum):
    """Where a process can be broken."""

    #: A slot knows its session, and has done nothing for it.
    BOUND = "bound"
    #: A process is about to claim a session; has claimed it.
    ACQUIRE_BEFORE = "acquire.before"
    ACQUIRE_AFTER = "acquire.after"
    #: Files and state are about to be brought back; are back.
    RESTORE_BEFORE = "restore.before"
    RESTORE_AFTER = "restore.after"
    #: A blob is about to be written to shared storage; is written, and published.
    BLOB_BEFORE = "blob.before"
    BLOB_AFTER = "blob.after"
    #: A blob is about to be read.
    BLOB_READ = "blob.read"
    #: The commit is about to be sent; its answer has come.
    COMMIT_BEFORE = "commit.before"
    COMMIT_AFTER = "commit.after"
    #: The caller's answer is about to leave the session's process.
    REPLY_BEFORE = "reply.before"
    #: The hot tail is about to be moved to cold segments; is moved.
    SEAL_BEFORE = "seal.before"
    SEAL_AFTER = "seal.after"
    #: The session is about to be given up in order; is given up.
    RELEASE_BEFORE = "release.before"
    RELEASE_AFTER = "release.after"


class Action(enum.StrEnum):
    """What happens to a process at an armed point."""

    #: It dies without warning.
    KILL = "kill"
    #: It stops, as a machine that hangs does, until somebody sends it SIGCONT.
    FREEZE = "freeze"
    #: The thread waits, as for a disk that stalls.
    STALL = "stall"


class Armed(msgspec.Struct, frozen=True, kw_only=True):
    """What waits at a point."""

    action: Action = Action.KILL
    #: The only session that it is for, `tenant/session`; empty for whoever comes first.
    session: str = ""
    #: Of `STALL`.
    seconds: float = 0.0
    #: True when it stays armed after it fired.
    stays: bool = False


class Probes:
    """The folder of one test run: arms points, reads what processes recorded. For one thread."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        for name in (ARMED, FIRED):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._records: list[dict[str, Any]] = []
        #: How many bytes of each file these are.
        self._read: collections.Counter[pathlib.Path] = collections.Counter()

    def arm(self, point: Point, what: Armed | None = None) -> None:
        """Let something wait at a point; it replaces what waited or fired there."""
        for mark in self._marks(point):
            mark.unlink()
        # Renamed into place: a process must not see half of it.
        hidden = self.folder / f".{point}"
        hidden.write_bytes(msgspec.json.encode(what or Armed()))
        hidden.rename(self.folder / ARMED / point)

    def disarm(self, point: Point) -> bool:
        """Take back what waits at a point; False if it has fired, or was never there."""
        try:
            (self.folder / ARMED / point).unlink()
        except FileNotFoundError:
            return False
        return True

    def fired(self, point: Point) -> list[int]:
        """Return the processes that a point broke since it was armed, by id, in no order."""
        return [int(mark.suffix[1:]) for mark in self._marks(point)]

    def records(self) -> list[dict[str, Any]]:
        """Return what all processes passed: `point`, `pid`, `at_s` (monotonic) and the facts.

        In order within a process and by the machine's monotonic clock between them.
        """
        for path in self.folder.glob(f"*{RECORD}"):
            with path.open("rb") as file:
                file.seek(self._read[path])
                # A process may be writing its last line, or have been killed while it did.
                whole, end, _ = file.read().rpartition(b"\n")
            self._read[path] += len(whole + end)
            self._records += [json.loads(line) for line in whole.splitlines()]
        self._records.sort(key=lambda line: line["at_s"])
        return self._records.copy()

    def _marks(self, point: Point) -> list[pathlib.Path]:
        return list((self.folder / FIRED).glob(f"{point}.*"))


def reach(point: Point, **facts: object) -> None:
    """Say that this process is at a point; facts are what a record of it should hold.

    `session`, where it is given, is `tenant/session` and what `Armed.session` is compared with.
    """
    if _here is not None:
        _here.pass_by(point, facts)


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Let this process pass all points unseen: for what is no part of any session's life."""
    global _here
    was, _here = _here, None
    try:
        yield
    finally:
        _here = was


class _Here:
    """This process's end of the probes."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._descriptor = -1
        self._pid = 0

    def pass_by(self, point: Point, facts: dict[str, object]) -> None:
        self._record(point, facts)
        path = self._folder / ARMED / point
        try:
            armed = msgspec.json.decode(path.read_bytes(), type=Armed)
            if armed.session and armed.session != facts.get("session"):
                return
            mark = self._folder / FIRED / f"{point}.{os.getpid()}"
            if armed.stays:
                mark.touch()
            else:
                # Whoever renames it is the one that it was for.
                path.rename(mark)
        except FileNotFoundError:
            return
        match armed.action:
            case Action.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.FREEZE:
                # To this thread: another would stop the process, but only once it has its turn, and
                # this one would go on until then.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            case Action.STALL:
                time.sleep(armed.seconds)

    def _record(self, point: Point, facts: dict[str, object]) -> None:
        line = {"point": point, "pid": os.getpid(), "at_s": time.monotonic(), **facts}
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._descriptor = os.open(
                    self._folder / f"{self._pid}-{time.monotonic_ns()}{RECORD}",
                    os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
                    0o600,
                )
            # One write, past all buffers of this process: it survives the process's death.
            os.write(self._descriptor, json.dumps(line, default=str).encode() + b"\n")


_named = os.environ.get(VARIABLE)
_here = _Here(pathlib.Path(_named)) if _named else None
