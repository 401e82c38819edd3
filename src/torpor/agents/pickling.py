"""How a notebook's functions and classes become bytes and come back.

They are pickled by value. Their globals are not copied: on the way back every function is bound to
the one namespace again, so that what one function assigns another one sees. Closures that share a
variable share it afterwards too. Code that runs when a class is made does not run again.
"""

import functools
import io
import pickle
import types
import weakref
from collections.abc import Callable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

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
#: What Python calls to make a class of a metaclass, or a subclass.
_METACLASS_MAKERS = frozenset({"__call__", "__init__", "__new__", "__prepare__", "__setattr__"})


class Token:
    """Stands in a pickle for something that the process which loads it has already."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> str:
        return self._name


#: The namespace itself.
HERE = Token("HERE")
#: The list of what is to be done when everything is loaded.
LATER = Token("LATER")


class Nowhere(io.RawIOBase):
    """Takes bytes and keeps none, to learn whether a value can be pickled."""

    def write(self, data: Any) -> int:
        """Count `data`."""
        return len(data)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Writes values; those of one pickler share what they share."""

    def __init__(self, file: io.IOBase, variables: dict[str, Any]) -> None:
        super().__init__(file, protocol=5)
        self._variables = variables

    def reducer_override(self, obj: Any) -> Any:
        """Say how `obj` is written, or leave it to cloudpickle."""
        if isinstance(obj, types.FunctionType) and obj.__globals__ is self._variables:
            return _reduce_function(obj)
        if isinstance(obj, types.CellType):
            return _reduce_cell(obj)
        if isinstance(obj, _CACHED) and self._is_ours(obj.__wrapped__):
            return _make_cached, (obj.__wrapped__, obj.cache_parameters())
        if isinstance(obj, functools.cached_property):  # has a lock, until Python 3.12
            return _make_cached_property, (obj.func, obj.attrname)
        if isinstance(obj, weakref.WeakKeyDictionary):  # `functools.singledispatch` has one
            return type(obj), (dict(obj),)
        if isinstance(obj, io.TextIOWrapper):
            # cloudpickle would quietly put a copy of its content in place of the file.
            raise pickle.PicklingError("cannot pickle an open file")
        reduced = super().reducer_override(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple) and len(reduced) == 6:
            make, made_of, state, _, _, set_state = reduced
            return make, made_of, (LATER, set_state, state), None, None, _set_class
        return reduced

    def _is_ours(self, function: Any) -> bool:
        return getattr(function, "__globals__", None) is self._variables


class Unpickler(pickle.Unpickler):
    """Reads what a `Pickler` wrote; call `finish` after the last value."""

    def __init__(self, data: bytes, variables: dict[str, Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._later: list[tuple[type, dict[str, Any]]] = []
        self._tokens = {"HERE": variables, "LATER": self._later}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in the pickle stands for."""
        if module == __name__ and name in self._tokens:
            return self._tokens[name]
        return super().find_class(module, name)

    def finish(self) -> None:
        """Give classes the methods that had to wait until all classes are made."""
        for cls, attributes in self._later:
            for name, value in attributes.items():
                setattr(cls, name, value)


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


def _make_cached_property(function: Callable[[Any], Any], name: str | None) -> Any:
    made: functools.cached_property[Any] = functools.cached_property(function)
    made.attrname = name
    return made


def _set_class(
    cls: type, state: tuple[list[Any], Callable[..., Any], tuple[dict[str, Any], Any]]
) -> None:
    later, set_state, (attributes, slots) = state
    makers = {"__init_subclass__"} | (_METACLASS_MAKERS if issubclass(cls, type) else frozenset())
    waiting = {name: value for name, value in attributes.items() if name in makers}
    later.append((cls, waiting))
    set_state(cls, ({k: v for k, v in attributes.items() if k not in waiting}, slots))
