"""An agent instance as bytes, and back.

Only bytes that `torpor.storage.envelope` has verified may come to `load`.
"""

import builtins
import contextlib
import io
import pickle
import time
from collections.abc import Iterator
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from torpor import errors, limits
from torpor.definition import Agent

PROTOCOL = 5
#: How deep the search for what cannot be pickled goes; the path is of use to a person up to here.
_BLAME_DEPTH_MAX = 8
#: The search pickles many members again; a person waits for the answer.
_BLAME_S_MAX = 2.0


def dump(instance: Agent) -> bytes:
    """Return the pickled instance.

    Functions and classes made in a session travel by value, those of importable modules by
    reference. A function whose globals are a dict attribute of the instance (a notebook's
    namespace) still shares them after `load`.

    Raises:
        StateNotPicklable: the message names the attribute; or it is larger than `STATE_BYTES_MAX`.
    """
    try:
        data = _pickle(instance)
    # Objects choose what their `__reduce__` raises: all of it means the same here.
    except Exception as error:
        raise errors.StateNotPicklable(_blame(instance, error)) from error
    if len(data) > limits.STATE_BYTES_MAX:
        raise errors.StateNotPicklable(
            f"the agent's state has {len(data)} bytes, the limit is {limits.STATE_BYTES_MAX}: "
            "keep large data in files of the workspace"
        )
    return data


def load(data: bytes | memoryview) -> Agent:
    """Return the instance of verified bytes.

    Raises:
        AgentImportFailed: the agent's code has no longer what the state refers to.
        CheckpointIncompatible: the state's own code raised an error while it was restored.
    """
    try:
        instance: Agent = pickle.loads(data)  # noqa: S301 — verified: see the module docstring
    except (ImportError, AttributeError) as error:
        raise errors.AgentImportFailed(
            f"the state refers to code that is not there: {_words(error)}"
        ) from error
    except Exception as error:
        raise errors.CheckpointIncompatible(
            f"the state cannot be restored: {_words(error)}"
        ) from error
    return instance


def _pickle(value: object) -> bytes:
    file = io.BytesIO()
    pickler = cloudpickle.Pickler(file, protocol=PROTOCOL)
    with contextlib.ExitStack() as stack:
        for namespace in _namespaces(value):
            # cloudpickle would give functions a copy of the globals that they use.
            pickler.globals_ref[id(namespace)] = namespace
            stack.enter_context(_without_builtins(namespace))
        pickler.dump(value)
    return file.getvalue()


def _namespaces(value: object) -> list[dict[str, Any]]:
    """Return the dict attributes, unless the instance decides itself what is stored."""
    if type(value).__getstate__ is not object.__getstate__:
        return []
    return [member for member in getattr(value, "__dict__", {}).values() if type(member) is dict]


@contextlib.contextmanager
def _without_builtins(namespace: dict[str, Any]) -> Iterator[None]:
    """Hide what `exec` adds to a namespace; it adds it again after `load`."""
    if namespace.get("__builtins__") is not builtins.__dict__:
        yield
        return
    hidden = namespace.pop("__builtins__")
    try:
        yield
    finally:
        namespace["__builtins__"] = hidden


def _blame(instance: object, error: Exception) -> str:
    """Return which part of the instance cannot be pickled, as `path: why`, as near as was found."""
    path, value, deadline = "self", instance, time.monotonic() + _BLAME_S_MAX
    for _ in range(_BLAME_DEPTH_MAX):
        found = _first_failing(value, deadline)
        if found is None:
            break
        step, value, error = found
        path += step
    return f"{path}: {_words(error)}"


def _first_failing(value: object, deadline: float) -> tuple[str, object, Exception] | None:
    for step, member in _members(value):
        if time.monotonic() > deadline:
            return None
        try:
            _pickle(member)
        except Exception as error:
            return step, member, error
    return None


def _members(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r:.60}]", member) for key, member in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", member) for index, member in enumerate(value))
    elif type(value).__getstate__ is object.__getstate__:
        for name, member in getattr(value, "__dict__", {}).items():
            yield f".{name}", member


def _words(error: Exception) -> str:
    if isinstance(error, RecursionError) or "recursion" in str(error):
        return "nested too deeply to be pickled"
    return f"{error}" if isinstance(error, TypeError) else f"{type(error).__name__}: {error}"
