"""The variables of a notebook, and how they become bytes and come back.

Functions and classes that cells define are pickled by value. Their globals are not copied: on the
way back every function is bound to the one namespace again, so that what one function assigns
another one sees. Closures that share a variable share it afterwards too.
"""

import builtins
import contextlib
import functools
import importlib
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from torpor import errors

#: Names that every module has; they are made anew, not stored.
_MODULE_NAMES = frozenset({*vars(types.ModuleType("__main__")), "__builtins__"})
#: A reason is for people; a longer one is somebody's data.
_REASON_CHARS_MAX = 300
#: Dotted imports remembered; a session that imports more has written them in a loop.
_SUBMODULES_MAX = 500
_CACHED = type(functools.lru_cache(lambda: None))
_FUNCTION_ATTRIBUTES = (
    "__annotations__",
    "__defaults__",
    "__doc__",
    "__kwdefaults__",
    "__module__",
    "__name__",
    "__qualname__",
)


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
                raise errors.StateNotPicklable(
                    f"the variables cannot be pickled together: {_reason(again)}"
                ) from failure

    @classmethod
    def load(cls, data: bytes) -> "Namespace":
        """Return the namespace that `dump` wrote.

        Raises:
            StateNotPicklable: a variable cannot be restored, for instance because a module that
                it comes from is gone; the message names it.
        """
        space = cls()
        unpickler = _Unpickler(data, space.variables)
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
                raise errors.StateNotPicklable(
                    f"the variable {name!r} cannot be restored: {_reason(failure)}; bring back "
                    "what it needs, or rewind the session"
                ) from failure
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
            (name, HERE if value is self.variables else value)
            for name, value in list(self.variables.items())
            if name not in _MODULE_NAMES
        ]
        return sorted(items, key=rank)

    def _dump_without(self, variables: dict[str, Any], unkept: dict[str, str]) -> bytes:
        kept = {name: value for name, value in variables.items() if name not in unkept}
        file = io.BytesIO()
        pickler = _Pickler(file, self.variables)
        pickler.dump((list(self.submodules), list(kept)))
        for value in kept.values():
            pickler.dump(value)
        return file.getvalue()

    def _unpicklable(self, variables: dict[str, Any]) -> dict[str, str]:
        reasons = {}
        for name, value in variables.items():
            try:
                _Pickler(_Nowhere(), self.variables).dump(value)
            except Exception as failure:
                reasons[name] = _reason(failure)
        return reasons


class _Here:
    """Stands for the namespace itself in a pickle."""

    def __reduce__(self) -> str:
        return "HERE"


HERE = _Here()


class _Nowhere(io.RawIOBase):
    """Takes bytes and keeps none, to learn whether a value can be pickled."""

    def write(self, data: Any) -> int:
        return len(data)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.IOBase, variables: dict[str, Any]) -> None:
        super().__init__(file, protocol=5)
        self._variables = variables

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.FunctionType) and obj.__globals__ is self._variables:
            return _reduce_function(obj)
        if isinstance(obj, types.CellType):
            return _reduce_cell(obj)
        if isinstance(obj, _CACHED):
            wrapped = obj.__wrapped__
            if getattr(wrapped, "__globals__", None) is self._variables:
                return _make_cached, (wrapped, obj.cache_parameters())
        if isinstance(obj, io.TextIOWrapper):
            # cloudpickle would quietly put a copy of its content in place of the file.
            raise pickle.PicklingError("cannot pickle an open file")
        return super().reducer_override(obj)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, variables: dict[str, Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._variables = variables

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (__name__, "HERE"):
            return self._variables
        return super().find_class(module, name)


def _reduce_function(function: types.FunctionType) -> tuple[Any, ...]:
    state = {name: getattr(function, name) for name in _FUNCTION_ATTRIBUTES}
    made_of = (HERE, function.__code__, function.__closure__)
    return _make_function, made_of, (state, vars(function)), None, None, _set_function


def _make_function(
    variables: dict[str, Any], code: types.CodeType, closure: tuple[types.CellType, ...] | None
) -> types.FunctionType:
    return types.FunctionType(code, variables, closure=closure)


def _set_function(
    function: types.FunctionType, state: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    for name, value in state[0].items():
        setattr(function, name, value)
    vars(function).update(state[1])


def _reduce_cell(cell: types.CellType) -> tuple[Any, ...]:
    # Empty first, filled later: a function may be inside its own closure.
    try:
        content: tuple[Any, ...] = (cell.cell_contents,)
    except ValueError:
        content = ()
    return types.CellType, (), content, None, None, _fill_cell


def _fill_cell(cell: types.CellType, content: tuple[Any, ...]) -> None:
    if content:
        cell.cell_contents = content[0]


def _make_cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reason(failure: Exception) -> str:
    lines = str(failure).splitlines() or [type(failure).__name__]
    return lines[0][:_REASON_CHARS_MAX]
