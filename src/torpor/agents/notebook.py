"""A Python interpreter as an agent: each message is a cell, the variables outlive the process."""

import asyncio
import os
import sys
import time
from typing import Any, ClassVar

from torpor import context, definition, errors, messages
from torpor.agents import cells, files, namespaces

#: Sources of cells that define something, kept so that tracebacks show their lines after a wake.
_SOURCES_CHARS_MAX = 64 << 10
#: Names remembered as lost; each was named in a reply when it was set.
_LOST_MAX = 100
#: Share of the turn's own limit that a cell may take; the rest is for interrupting it and pickling.
_CELL_SHARE = 0.9


class Notebook(definition.Agent):
    """Runs the Python that each message contains; variables and files outlive the process.

    The reply's text is what the cell printed, the `repr` of its last expression and its error. The
    reply's data is `{"stdout", "stderr", "value", "error": {"type", "message", "traceback"} | None,
    "files": [{"path", "size_bytes"}], "duration_ms", "interrupted", "warnings": [text]}`. An error
    in a cell is content: the turn succeeds and keeps what the cell had done.

    Functions, classes and imported modules come back after a sleep, and functions share their
    globals as before. What cannot be pickled (an open file, a generator, a lock, a thread) lives as
    long as the process: a warning names it, and a later `NameError` says why it is gone.
    `await` works at the top of a cell; tasks that it leaves behind end with the cell.
    What libraries keep to themselves (the state of a seeded global random generator, a logging
    set-up) begins anew in a new process. What child processes print themselves is not captured.
    """

    #: A cell that runs longer is interrupted; a message may say `{"timeout_s": 5}` instead.
    cell_timeout: ClassVar[str] = "60s"

    def __init__(self) -> None:
        #: Cells run so far.
        self.cells = 0
        #: Cell number → source, of cells that define functions or classes; bounded.
        self.sources: dict[int, str] = {}
        #: Variables that an earlier process had and could not keep → why.
        self.lost: dict[str, str] = {}
        self._space: namespaces.Namespace | None = namespaces.Namespace()
        # The namespace as bytes: from loading to waking, and from a cell's end to the commit.
        self._dumped: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state; the variables are one `bytes` in it."""
        dumped = self._dumped
        if dumped is None and self._space is not None:
            dumped = self._space.dump()
        lost = {**self.lost, **(self._space.unkept if self._space else {})}
        state = {**vars(self), "_space": None, "_dumped": dumped, "lost": _newest(lost)}
        if self._space is not None:
            self._dumped = None  # the variables are there: no need to hold them twice
        return state

    async def on_wake(self) -> None:
        """Bring the variables back.

        Raises:
            CheckpointIncompatible: one of them cannot be restored; the message names it.
        """
        # Without a display any other choice fails; it is read when matplotlib is first imported.
        os.environ.setdefault("MPLBACKEND", "Agg")
        if "" not in sys.path:
            sys.path.insert(0, "")  # modules in the workspace, as at a prompt
        for number, source in self.sources.items():
            cells.show_source(cells.file_name(number), source)
        await self._awake()

    async def on_message(self, ctx: context.Context, message: messages.Message) -> messages.Reply:
        """Run `message.text` as a cell.

        Raises:
            InvalidField: `timeout_s` is not a positive number within the turn's limit.
            TurnTimedOut: the cell ran too long and could not be interrupted.
            StateNotPicklable: the variables can be pickled one by one, but not together.
        """
        timeout_s = self._timeout_s(message.data)
        space = await self._awake()
        self.cells += 1
        self._dumped = None
        before = await asyncio.to_thread(files.scan, ctx.workspace)
        started_s = time.monotonic()
        cell = cells.Cell(self.cells, message.text, space)
        outcome = await cell.run(timeout_s, self._explain)
        duration_ms = round((time.monotonic() - started_s) * 1000)
        self._remember(message.text, space)
        warned = set(space.unkept)
        self._dumped = await asyncio.to_thread(space.dump)
        self.lost = {n: why for n, why in self.lost.items() if n not in space.variables}
        warnings = [
            f"{name} will not outlive this process: {why}"
            for name, why in space.unkept.items()
            if name not in warned
        ]
        after = await asyncio.to_thread(files.scan, ctx.workspace)
        changed = files.changed(before, after)
        if after.truncated or len(changed) > files.LISTED_MAX:
            warnings.append("the list of changed files is not complete: there are too many")
        return _reply(outcome, changed[: files.LISTED_MAX], duration_ms, warnings)

    async def _awake(self) -> namespaces.Namespace:
        if self._space is None:
            dumped = self._dumped or b""
            self._space = await asyncio.to_thread(namespaces.Namespace.load, dumped)
            self._dumped = None
        return self._space

    def _timeout_s(self, data: dict[str, Any]) -> float:
        limit_s = definition.parse_duration_s(self.turn_timeout) * _CELL_SHARE
        timeout_s = data.get(
            "timeout_s", min(definition.parse_duration_s(self.cell_timeout), limit_s)
        )
        is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
        if not is_number or not 0 < timeout_s <= limit_s:
            raise errors.InvalidField(
                f"timeout_s is {timeout_s!r}; it must be a number above 0 and at most {limit_s:g}",
                field="timeout_s",
            )
        return float(timeout_s)

    def _explain(self, name: str) -> str | None:
        why = self.lost.get(name)
        return None if why is None else f"{name} did not outlive the session's sleep: {why}"

    def _remember(self, source: str, space: namespaces.Namespace) -> None:
        defines, imported = cells.definitions_and_imports(source)
        space.remember_imports(imported)
        if not defines:
            return
        self.sources[self.cells] = source
        while sum(map(len, self.sources.values())) > _SOURCES_CHARS_MAX:
            del self.sources[min(self.sources)]


def _newest(lost: dict[str, str]) -> dict[str, str]:
    return dict(list(lost.items())[-_LOST_MAX:])


def _reply(
    outcome: cells.Outcome,
    changed: list[dict[str, str | int]],
    duration_ms: int,
    warnings: list[str],
) -> messages.Reply:
    error = outcome.error
    parts = [
        outcome.stdout,
        outcome.value,
        error and error.traceback,
        *(f"warning: {text}" for text in warnings),
    ]
    return messages.Reply(
        text="\n".join(part.rstrip("\n") for part in parts if part),
        data={
            "stdout": outcome.stdout,
            "stderr": outcome.stderr,
            "value": outcome.value,
            "error": error
            and {"type": error.type, "message": error.message, "traceback": error.traceback},
            "files": changed,
            "duration_ms": duration_ms,
            "interrupted": outcome.interrupted,
            "warnings": warnings,
        },
    )
