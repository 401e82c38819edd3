"""What session code prints: bounded in the events of its turn, and in the session's log files."""

import contextlib
import io
import pathlib
import sys
import threading
from typing import TextIO

import msgspec

from torpor import limits
from torpor.storage import records


class Printed(msgspec.Struct, frozen=True, kw_only=True):
    """What one turn printed."""

    text: str
    #: Characters that did not fit.
    dropped: int


def log_folder(storage: pathlib.Path, key: records.SessionKey) -> pathlib.Path:
    """Return where a session's log files lie: in shared storage, so that they outlive the node."""
    return storage / key.tenant / "logs" / key.session


def utf8(text: str) -> str:
    """Return `text` with lone surrogates (as in odd file names) escaped: events are UTF-8."""
    return text.encode(errors="backslashreplace").decode()


class SessionLog:
    """A session's log: a file for each process that prints, the oldest dropped for room.

    What goes wrong with it is silent: it must fail neither a wake nor a print.
    """

    def __init__(self, folder: pathlib.Path, epoch: int) -> None:
        self._folder = folder
        self._epoch = epoch
        self._part = 0
        self._file: io.TextIOWrapper | None = None

    def write(self, text: str) -> None:
        """Append."""
        if not text:
            return
        with contextlib.suppress(OSError, ValueError):
            if self._file is None:
                self._file = self._open()
            self._file.write(text)
            if self._file.tell() > limits.LOG_FILE_BYTES_MAX:
                self._file.close()
                self._part += 1
                self._file = None

    def close(self) -> None:
        """Close the current file."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> io.TextIOWrapper:
        self._folder.mkdir(parents=True, exist_ok=True)
        kept_bytes = 0
        for path in sorted(self._folder.glob("*.log"), reverse=True):
            if kept_bytes >= limits.LOG_FILE_BYTES_MAX:
                path.unlink(missing_ok=True)
            else:
                kept_bytes += path.stat().st_size
        # Named so that sorting by name is sorting by age.
        path = self._folder / f"{self._epoch:08d}-{self._part:04d}.log"
        return path.open("a", encoding="utf-8", errors="replace", buffering=1)


class Capture(io.TextIOBase):
    """Stands in for `sys.stdout` or `sys.stderr`: passes on, logs, and keeps the turn's share."""

    def __init__(self, through: TextIO, log: SessionLog, lock: threading.Lock) -> None:
        self._through = through
        self._log = log
        self._lock = lock
        self._kept: list[str] = []
        self._room = limits.OUTPUT_CHARS_MAX
        self._dropped = 0

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the encoding, which code that prints may ask for."""
        return self._through.encoding

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Take what was printed, by whichever thread."""
        with self._lock:
            kept = text[: self._room]
            if kept:
                self._kept.append(kept)
                self._room -= len(kept)
            self._dropped += len(text) - len(kept)
            self._log.write(text)
        self._through.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what it stands in for."""
        self._through.flush()

    def fileno(self) -> int:
        """Return the descriptor of what it stands in for: child processes inherit that one."""
        return self._through.fileno()

    def take(self) -> Printed:
        """Return what was printed since the last call, and begin anew."""
        with self._lock:
            printed = Printed(text=utf8("".join(self._kept)), dropped=self._dropped)
            self._kept, self._room, self._dropped = [], limits.OUTPUT_CHARS_MAX, 0
        return printed


class Captures:
    """Both streams of the process."""

    def __init__(self, log: SessionLog) -> None:
        self._log = log
        lock = threading.Lock()
        self.stdout = Capture(sys.stdout, log, lock)
        self.stderr = Capture(sys.stderr, log, lock)
        sys.stdout, sys.stderr = self.stdout, self.stderr

    def take(self) -> dict[str, object] | None:
        """Return the data of an `agent.output` event, or None if nothing was printed."""
        data: dict[str, object] = {}
        for name, stream in (("stdout", self.stdout), ("stderr", self.stderr)):
            printed = stream.take()
            if printed.text:
                data[name] = printed.text
            if printed.dropped:
                data[f"{name}_dropped"] = printed.dropped
        return data or None
