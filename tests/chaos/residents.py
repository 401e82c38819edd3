"""Which process holds which session, as the processes' own records tell."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import msgspec

import machine
from torpor import probes


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A living process that claimed a session; perhaps not the last one that did."""

    #: `tenant/session`.
    session: str
    epoch: int
    pid: int
    #: The machine's name.
    node: str


class Residents:
    """Reads what processes record as they go on; each call reads only what is new."""

    def __init__(self, folder: pathlib.Path, machines: Mapping[str, machine.Machine]) -> None:
        self._folder = folder
        self._machines = machines
        self._read_bytes: dict[str, int] = {}
        #: Files of processes that are gone; they get no more lines.
        self._finished: set[str] = set()
        self._claims: dict[tuple[str, int], int] = {}
        #: The last claim of each process: numbers come again.
        self._of_pid: dict[int, tuple[str, int]] = {}

    def all(self) -> list[Resident]:
        """Return every process that lives and claimed a session, lowest epochs first."""
        self._catch_up()
        found = [self._resident(*key) for key in sorted(self._claims)]
        return [resident for resident in found if resident is not None]

    def of(self, session: str, epoch: int) -> Resident | None:
        """Return the process that claimed one epoch of a session, if it lives."""
        self._catch_up()
        return self._resident(session, epoch)

    def _resident(self, session: str, epoch: int) -> Resident | None:
        pid = self._claims.get((session, epoch))
        if pid is None:
            return None
        node = self._home(pid) if machine.plays(pid, machine.Role.SESSION) else None
        if node is None:
            self._forget(pid)
            return None
        return Resident(session=session, epoch=epoch, pid=pid, node=node)

    def _forget(self, pid: int) -> None:
        claim = self._of_pid.pop(pid, None)
        if claim is not None:
            del self._claims[claim]

    def _home(self, pid: int) -> str | None:
        namespace = machine.namespace_of(pid)
        homes = (each for each in self._machines.values() if each.namespace_id == namespace)
        return next((each.name for each in homes), None)

    def _catch_up(self) -> None:
        names = {path.name for path in self._folder.glob(f"*{probes.RECORD}")} - self._finished
        for name in sorted(names, key=_begun_ns):
            # Asked first: a process that is gone now has written its last line.
            is_gone = not machine.command_line(int(name.partition("-")[0]))
            self._read(name)
            if is_gone:
                self._finished.add(name)

    def _read(self, name: str) -> None:
        begun = self._read_bytes.get(name, 0)
        with (self._folder / name).open("rb") as file:
            file.seek(begun)
            # What is behind the last line end is a line that is being written.
            lines, end, _ = file.read().rpartition(b"\n")
        self._read_bytes[name] = begun + len(lines + end)
        for line in lines.splitlines():
            self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> None:
        if record["point"] == probes.Point.ACQUIRE_AFTER:
            claim = (record["session"], record["epoch"])
            self._forget(record["pid"])
            self._claims[claim] = record["pid"]
            self._of_pid[record["pid"]] = claim


def _begun_ns(name: str) -> int:
    return int(name.removesuffix(probes.RECORD).partition("-")[2])
