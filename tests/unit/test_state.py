"""An agent's state as bytes: what survives, and what is said of what cannot."""

import collections
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from typing import Any

import pytest

from torpor import errors, limits
from torpor.definition import Agent
from torpor.storage import state

SESSION_CODE = """
import dataclasses
count = 1
def bump():
    global count
    count += 1
    return count
class Point:
    def __init__(self, x): self.x = x
    def twice(self): return Point(self.x * 2)
@dataclasses.dataclass
class Pair:
    left: int
    right: int = 2
point = Point(21).twice()
square = lambda x: x * x
"""


class Holder(Agent):
    """An agent with whatever attributes a test gives it."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Chooser(Holder):
    """Decides itself what is stored."""

    def __getstate__(self) -> dict[str, Any]:
        return {"kept": self.kept}  # type: ignore[attr-defined]


def again(instance: Agent) -> Any:
    """Return the instance after a stay in storage."""
    return state.load(state.dump(instance))


def session(name: str | None) -> dict[str, Any]:
    """Return the namespace of a session that ran some code."""
    namespace: dict[str, Any] = {} if name is None else {"__name__": name}
    exec(SESSION_CODE, namespace)  # noqa: S102
    return namespace


def test_plain_state_survives() -> None:
    """Values, cycles and shared objects come back as they were, of the importable class itself."""
    shared: list[Any] = [1]
    shared.append(shared)
    back = again(Holder(numbers={1: 2}, first=shared, second=shared))
    assert type(back) is Holder
    assert back.numbers == {1: 2}
    assert back.first is back.second is back.first[1]


@pytest.mark.parametrize("name", ["notebook", "__main__", None])
def test_code_made_in_a_session_survives(name: str | None) -> None:
    """Functions, classes and instances come back in a process that never saw their code."""
    instance = Agent()
    vars(instance)["namespace"] = session(name)
    code = (
        "import sys; from torpor.storage import state\n"
        "names = state.load(sys.stdin.buffer.read()).namespace\n"
        "assert isinstance(names['point'], names['Point'])\n"
        "print(names['point'].x, names['point'].twice().x, names['square'](3), names['Pair'](1))\n"
        "print(names['bump'](), names['count'])\n"
        "names['count'] = 10; print(names['bump']())\n"
        "exec('def more(): return bump() + len([1])', names); print(names['more']())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=state.dump(instance),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split("\n")[:-1] == [
        "42 84 9 Pair(left=1, right=2)",
        "2 2",
        "11",
        "13",
    ]


def test_functions_share_the_namespace_after_a_wake() -> None:
    """Assigning in the namespace is seen by its functions, also if one was stored before it."""
    namespace = session("notebook")
    back = again(Holder(callback=namespace["bump"], namespace=namespace))
    back.namespace["count"] = 5
    assert back.callback() == back.namespace["count"] == 6
    assert back.namespace["bump"].__globals__ is back.namespace


def test_dumping_leaves_the_namespace_as_it_was() -> None:
    """What `exec` put into it is there afterwards, also after a failure, and travels not."""
    namespace = session("notebook")
    before = dict(namespace)
    data = state.dump(Holder(namespace=namespace))
    with pytest.raises(errors.StateNotPicklable):
        state.dump(Holder(namespace=namespace, lock=threading.Lock()))
    assert namespace == before
    assert "__builtins__" in namespace
    assert b"ArithmeticError" not in data


def test_an_agent_may_choose_its_state() -> None:
    """`__getstate__` decides what is stored; what it leaves out need not be picklable."""
    namespace = {"lock": threading.Lock()}
    exec("def f(): return 1", namespace)  # noqa: S102
    back = again(Chooser(kept=namespace["f"], namespace=namespace))
    assert back.kept() == 1
    assert not hasattr(back, "namespace")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"ok": 1, "namespace": {"a": 1, "conn": sqlite3.connect(":memory:")}},
            "self.namespace['conn']: cannot pickle 'sqlite3.Connection' object",
        ),
        ({"pool": [1, {"locks": (2, threading.Lock())}]}, "self.pool[1]['locks'][1]: cannot"),
        ({"other": Holder(inner=Holder(lock=threading.Lock()))}, "self.other.inner.lock: cannot"),
        ({"gen": (i for i in range(3))}, "self.gen: cannot pickle 'generator' object"),
    ],
)
def test_what_cannot_be_pickled_is_named(attributes: dict[str, Any], message: str) -> None:
    """The error gives the path to the member that is to blame."""
    with pytest.raises(errors.StateNotPicklable) as caught:
        state.dump(Holder(**attributes))
    assert str(caught.value).startswith(message)


def test_deep_and_endless_structures_are_an_answer() -> None:
    """Nesting too deep for pickle is said in words; the search for it ends."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(errors.StateNotPicklable, match="nested too deeply"):
        state.dump(Holder(deep=deep))
    while deep:
        deep = deep[0]
    loop: dict[str, Any] = {}
    loop["lock"], loop["loop"] = threading.Lock(), loop
    with pytest.raises(errors.StateNotPicklable, match=r"self\.loop\['lock'\]"):
        state.dump(Holder(loop=loop))


def test_a_state_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message gives both sizes and says where large data belong."""
    monkeypatch.setattr(limits, "STATE_BYTES_MAX", 1_000)
    with pytest.raises(errors.StateNotPicklable, match="limit is 1000: keep large data in files"):
        state.dump(Holder(data=os.urandom(1_000)))


def test_a_state_whose_code_is_gone_is_named() -> None:
    """A class that its module no longer has is the agent's fault, not damage."""
    data = pickle.dumps(collections.OrderedDict()).replace(b"OrderedDict", b"OrderedDuck")
    with pytest.raises(errors.AgentImportFailed, match="OrderedDuck"):
        state.load(data)


def test_a_state_that_raises_while_loading_is_reported() -> None:
    """An error of the state's own code becomes one of ours."""
    data = pickle.dumps(Exploding())
    with pytest.raises(errors.CheckpointIncompatible, match="ZeroDivisionError"):
        state.load(data)


class Exploding:
    """Cannot come back."""

    def __reduce__(self) -> Any:
        return divmod, (1, 0)
