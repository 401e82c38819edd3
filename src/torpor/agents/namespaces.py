"""The variables of a notebook."""

import builtins
import contextlib
import importlib
import io
import sys
import types
from collections.abc import Iterator
from typing import Any

from torpor import errors
from torpor.agents import output, pickling

#: Names that every module has; they are made anew, not stored.
_MODULE_NAMES = frozenset({*vars(types.ModuleType("__main__")), "__builtins__"})
#: A reason is for people; a longer one is somebody's data.
_REASON_CHARS_MAX = 300
#: Dotted imports remembered; a session that imports more has written them in a loop.
_SUBMODULES_MAX = 500


class Namespace:
    """The variables of one session, in a module object that takes the place of `__main__`."""

    def __init__(self) -> None:
        #: What a cell sees as `__main__`, so that pickle, dataclasses and typing find its classes.
        self.module = types.ModuleType("__main__")
        #: The globals of every cell.
        self.variables: dict[str, Any] = vars(self.module)
        self.variables["__builtins__"] = builtins
        #: Modules imported as `import a.b`: they are no variable of their own.
        self.submodules: dict[str, None] = {}
        #: Variables that cannot be pickled, and why; as of the last `dump`.
        self.unkept: dict[str, str] = {}

    def dump(self) -> bytes:
        """Return all variables as bytes, without those that cannot be pickled (`unkept`).

        Raises:
            StateNotPicklable: each variable can be pickled alone, but not all together.
        """
        variables = dict(self._in_load_order())
        self.unkept = self._unpicklable({n: v for n, v in variables.items() if n in self.unkept})
        try:
            return self._dump_without(variables, self.unkept)
        except Exception as failure:
            # Only now is every variable tried by itself: large data is not pickled twice.
            self.unkept = self._unpicklable(variables)
            try:
                return self._dump_without(variables, self.unkept)
            except Exception as again:
                raise errors.CheckpointIncompatible(
                    f"the variables cannot be pickled together: {_reason(again)}"
                ) from failure

    @classmethod
    def load(cls, data: bytes) -> "Namespace":
        """Return the namespace that `dump` wrote.

        Raises:
            CheckpointIncompatible: a variable cannot be restored, for instance because a module
                that it comes from is gone; the message names it.
        """
        space = cls()
        unpickler = pickling.Unpickler(data, space.variables)
        submodules, names = unpickler.load()
        space.submodules = dict.fromkeys(submodules)
        for module in submodules:
            # A module that is gone is an error where a cell uses it.
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        for name in names:
            try:
                space.variables[name] = unpickler.load()
            except Exception as failure:
                raise errors.CheckpointIncompatible(
                    f"the variable {name!r} cannot be restored: {_reason(failure)}; bring back "
                    "what it needs, or rewind the session"
                ) from failure
        unpickler.finish()
        return space

    def remember_imports(self, names: list[str]) -> None:
        """Note dotted module names, so that they are imported again after a wake."""
        self.submodules.update(dict.fromkeys(names))
        for name in list(self.submodules)[:-_SUBMODULES_MAX]:
            del self.submodules[name]

    @contextlib.contextmanager
    def as_main(self) -> Iterator[None]:
        """Be `sys.modules["__main__"]` for a while.

        Only while a cell runs: what is pickled by reference to `__main__` could not be loaded.
        """
        before = sys.modules["__main__"]
        sys.modules["__main__"] = self.module
        try:
            yield
        finally:
            sys.modules["__main__"] = before

    def _in_load_order(self) -> list[tuple[str, Any]]:
        """Modules, then functions and classes, then data: what runs while data loads is there."""

        def rank(item: tuple[str, Any]) -> int:
            if isinstance(item[1], types.ModuleType):
                return 0
            return 1 if isinstance(item[1], types.FunctionType | type) else 2

        items = [
            (name, pickling.HERE if value is self.variables else value)
            for name, value in list(self.variables.items())
            if name not in _MODULE_NAMES
        ]
        return sorted(items, key=rank)

    def _dump_without(self, variables: dict[str, Any], unkept: dict[str, str]) -> bytes:
        kept = {name: value for name, value in variables.items() if name not in unkept}
        file = io.BytesIO()
        pickler = pickling.Pickler(file, self.variables)
        pickler.dump((list(self.submodules), list(kept)))
        for value in kept.values():
            pickler.dump(value)
        return file.getvalue()

    def _unpicklable(self, variables: dict[str, Any]) -> dict[str, str]:
        reasons = {}
        for name, value in variables.items():
            try:
                pickling.Pickler(pickling.Nowhere(), self.variables).dump(value)
            except Exception as failure:
                reasons[name] = _reason(failure)
        return reasons


def _reason(failure: Exception) -> str:
    lines = str(failure).splitlines() or [type(failure).__name__]
    return output.encodable(lines[0][:_REASON_CHARS_MAX])
