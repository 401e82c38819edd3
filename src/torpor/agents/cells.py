"""One cell: Python source, run in a thread of its own, with what came of it."""

import ast
import asyncio
import contextlib
import ctypes
import inspect
import linecache
import pathlib
import re
import sys
import threading
import traceback
import types
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec

from torpor import errors
from torpor.agents import namespaces, output

#: The last expression's `repr`, and a traceback: enough to read, not a dump.
VALUE_CHARS_MAX = 16 << 10
#: Tries to interrupt a cell: code that catches the first few still ends.
INTERRUPTS_MAX = 10
#: Between two tries; together they are the grace that a cell has to come back from C code.
INTERRUPT_PAUSE_S = 0.5

_VALUE = "__value__"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The exception that ended a cell."""

    #: The exception's class name.
    type: str
    #: Its text.
    message: str
    #: As Python prints it, with the lines of cells and workspace files only.
    traceback: str


class Outcome(msgspec.Struct, kw_only=True):
    """What came of a cell."""

    #: Printed text, bounded.
    stdout: str = ""
    #: The same for the error stream.
    stderr: str = ""
    #: `repr` of the last expression, bounded; `None` if there is none.
    value: str | None = None
    #: The exception that ended it.
    error: Failure | None = None
    #: It ran too long and was stopped.
    interrupted: bool = False


class Cell:
    """Source text with a number; `run` runs it once."""

    def __init__(self, number: int, source: str, space: namespaces.Namespace) -> None:
        self._source = source
        self._space = space
        self._file = file_name(number)
        self._outcome = Outcome()
        self._interrupted_after_s: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, timeout_s: float, explain: Callable[[str], str | None]) -> Outcome:
        """Run the cell; an exception in it is part of the outcome.

        Args:
            timeout_s: seconds after which the cell is interrupted.
            explain: says of an undefined name why it is undefined, if that is known.

        Raises:
            TurnTimedOut: the cell could not be interrupted; it still runs in this process.
        """
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def body() -> None:
            # A late interruption strikes after the cell's own code; it has nothing left to stop.
            with contextlib.suppress(KeyboardInterrupt):
                try:
                    self._run(explain)
                finally:
                    loop.call_soon_threadsafe(done.set)

        show_source(self._file, self._source)
        thread = threading.Thread(target=body, name=self._file, daemon=True)
        # Put back here and not in the thread, where an interruption could strike in the middle.
        with _console(), self._space.as_main():
            thread.start()
            if not await _within(done, timeout_s):
                self._interrupted_after_s = timeout_s
                await self._interrupt(thread, done)
        self._space.variables.pop(_VALUE, None)
        self._outcome.stdout, self._outcome.stderr = output.STDOUT.take(), output.STDERR.take()
        return self._outcome

    async def _interrupt(self, thread: threading.Thread, done: asyncio.Event) -> None:
        for _ in range(INTERRUPTS_MAX):
            _raise_in(thread)
            if self._loop is not None:
                # The exception is raised at the next bytecode; a loop that sleeps runs none.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(lambda: None)
            # The exception may also strike just before `done` is set: then only the end tells.
            if await _within(done, INTERRUPT_PAUSE_S) or not thread.is_alive():
                self._outcome.interrupted = True
                if self._outcome.error is None:
                    self._outcome.error = self._failure(KeyboardInterrupt(), lambda name: None)
                return
        raise errors.TurnTimedOut(
            f"the cell ran longer than {self._interrupted_after_s:g} s and could not be "
            "interrupted: it does not return from a call into C code, or catches the "
            "interruption. Its process is given up; the session is as it was before the cell."
        )

    def _run(self, explain: Callable[[str], str | None]) -> None:
        try:
            self._outcome.value = self._value_of(_compiled(self._source, self._file))
        except BaseException as error:
            self._outcome.error = self._failure(error, explain)

    def _value_of(self, code: types.CodeType) -> str | None:
        running = eval(code, self._space.variables)  # noqa: S307
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(self._awaited(running))
        value = self._space.variables.get(_VALUE)
        return None if value is None else output.shortened(repr(value), VALUE_CHARS_MAX)

    async def _awaited(self, running: Coroutine[Any, Any, None]) -> None:
        self._loop = asyncio.get_running_loop()
        await running

    def _failure(self, error: BaseException, explain: Callable[[str], str | None]) -> Failure:
        # Copied out first: the exception holds the frames, and they hold the cell's variables.
        name = error.name if isinstance(error, NameError) else None
        reason = explain(name) if name else None
        if reason is not None:
            error.add_note(reason)
        if isinstance(error, KeyboardInterrupt) and self._interrupted_after_s is not None:
            message = (
                f"interrupted after {self._interrupted_after_s:g} s; what the cell had done is kept"
            )
            error.args = (message,)
        if isinstance(error, SystemExit):
            error.add_note("exit() ends the cell, not the session")
        summary = traceback.TracebackException.from_exception(error)
        _keep_users_lines(summary)
        text = "".join(summary.format()).rstrip("\n")
        return Failure(
            type=type(error).__name__,
            message=output.shortened(_text_of(error), VALUE_CHARS_MAX),
            traceback=output.shortened(text, VALUE_CHARS_MAX),
        )


def file_name(number: int) -> str:
    """Return the name under which tracebacks know a cell."""
    return f"<cell {number}>"


def show_source(file: str, source: str) -> None:
    """Let tracebacks and `inspect.getsource` find a cell's lines."""
    lines = [f"{line}\n" for line in source.splitlines()]
    # No time of change: linecache then never looks for a file of this name.
    linecache.cache[file] = (len(source), None, lines, file)


def definitions_and_imports(source: str) -> tuple[bool, list[str]]:
    """Return whether a cell defines functions or classes, and the modules it imports as `a.b`."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False, []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    imported = [
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    ]
    return any(isinstance(node, kinds) for node in nodes), [n for n in imported if "." in n]


def _compiled(source: str, file: str) -> types.CodeType:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(source, file, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        assignment = ast.Assign(targets=[ast.Name(_VALUE, ast.Store())], value=last.value)
        tree.body[-1] = ast.fix_missing_locations(ast.copy_location(assignment, last))
    code: types.CodeType = compile(tree, file, "exec", flags, dont_inherit=True)
    return code


def _keep_users_lines(summary: traceback.TracebackException) -> None:
    """Drop the frames of torpor and of libraries, here and in every exception below."""
    here = str(pathlib.Path.cwd())
    chain, seen = [summary], set()
    while chain:
        part = chain.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        frames = [f for f in part.stack if _is_users(f.filename, here)]
        part.stack = traceback.StackSummary.from_list(frames)
        below = [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
        chain.extend(each for each in below if each is not None)


def _is_users(file: str, workspace: str) -> bool:
    return re.fullmatch(r"<cell \d+>", file) is not None or file.startswith(f"{workspace}/")


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<the exception's text cannot be shown>"


def _raise_in(thread: threading.Thread) -> None:
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
        )


async def _within(done: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(done.wait(), seconds)
    except TimeoutError:
        return False
    return True


@contextlib.contextmanager
def _console() -> Iterator[None]:
    stdin: Any = output.NoInput()
    before, sys.stdin = sys.stdin, stdin
    try:
        with contextlib.redirect_stdout(output.STDOUT), contextlib.redirect_stderr(output.STDERR):
            yield
    finally:
        sys.stdin = before
