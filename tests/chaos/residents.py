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
        self._claims: dict[tuple[str, int], int] = {}

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
            # It does not come back; its number may.
            del self._claims[session, epoch]
            return None
        return Resident(session=session, epoch=epoch, pid=pid, node=node)

    def _home(self, pid: int) -> str | None:
        namespace = machine.namespace_of(pid)
        homes = (each for each in self._machines.values() if each.namespace_id == namespace)
        return next((each.name for each in homes), None)

    def _catch_up(self) -> None:
        for path in self._folder.glob(f"*{probes.RECORD}"):
            begun = self._read_bytes.get(path.name, 0)
            if path.stat().st_size == begun:
                continue
            with path.open("rb") as file:
                file.seek(begun)
                # What is behind the last line end is a line that is being written.
                lines, _, _ = file.read().rpartition(b"\n")
            self._read_bytes[path.name] = begun + len(lines) + bool(lines)
            for line in lines.splitlines():
                self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> None:
        if record["point"] == probes.Point.ACQUIRE_AFTER:
            self._claims[record["session"], record["epoch"]] = record["pid"]
