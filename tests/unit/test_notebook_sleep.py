"""What a notebook's variables are after its state was pickled and loaded in another process."""

import json
import pathlib
import subprocess
import sys

import cloudpickle
import pytest

from torpor import errors
from torpor.agents import namespaces, notebook
from torpor.messages import Message
from torpor.testing import context

#: Cells run before the sleep.
BEFORE = [
    "counter = 0\ndef read(): return counter",
    "def bump():\n    global counter\n    counter += 1\nbump()",
    "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)",
    """
def make():
    n = 0
    def up():
        nonlocal n
        n += 1
        return n
    def get(): return n
    return up, get
up, get = make()
up()
""",
    """
class Base:
    def name(self): return "base"
class Child(Base):
    def name(self): return "child of " + super().name() + str(counter)
child = Child()
""",
    """
import dataclasses, enum, typing
@dataclasses.dataclass
class Point:
    x: int
    y: list = dataclasses.field(default_factory=list)
class Colour(enum.Enum):
    RED = 1
class Pair(typing.NamedTuple):
    a: int
point, colour, pair = Point(1), Colour.RED, Pair(2)
""",
    """
import functools
def twice(f):
    @functools.wraps(f)
    def wrapper(*args, **kwargs): return 2 * f(*args, **kwargs)
    return wrapper
@twice
def add(a, b=3, *, c=4): return a + b + c
@functools.lru_cache(maxsize=10)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
square = lambda v: v * v
here = globals()
""",
    "import math as m\nimport xml.etree.ElementTree\nshared = []\nalso = {'list': shared}",
    """
class Restored:
    def __init__(self): self.root = 3.0
    def __getstate__(self): return {"square": self.root ** 2}
    def __setstate__(self, state): self.root = m.sqrt(state["square"])
first = Restored()
""",
    """
registry = {}
class Plugin:
    def __init_subclass__(cls, *, label, **kwargs):
        super().__init_subclass__(**kwargs)
        registry[label] = cls
class One(Plugin, label="one"): pass
class Meta(type):
    def __new__(meta, name, bases, members, **options):
        registry[name] = None
        return super().__new__(meta, name, bases, members)
class Made(metaclass=Meta): pass
registry.pop("Made")
""",
    """
class Lazy:
    @functools.cached_property
    def value(self): return counter
@functools.singledispatch
def show(value): return "any"
@show.register
def _(value: int): return "int"
def inner_only():
    import sys
    return sys.stdout
out = inner_only()
""",
    "import threading\nlock = threading.Lock()\ndef guarded():\n    with lock: return 1\nguarded()",
    "stream = (n for n in range(3))",
    "file = open('f.txt', 'w')",
    "thread = threading.current_thread()",
    "import own\nfrom own import helper",
    "def fail():\n    raise ValueError('the line is shown')",
]

#: Cells run after it, with the text that the reply must have.
AFTER = {
    "bump()\n(counter, read())": "(2, 2)",
    "counter = 10\nbump()\nread()": "11",
    "even(10), odd(7), even(7)": "(True, True, False)",
    "up(), get()": "(2, 2)",
    "child.name(), isinstance(child, Child), isinstance(child, Base)": (
        "('child of base11', True, True)"
    ),
    "class Grandchild(Child): pass\nGrandchild().name()": "'child of base11'",
    "point == Point(1), dataclasses.replace(point, x=5), len(dataclasses.fields(Point))": (
        "(True, Point(x=5, y=[]), 2)"
    ),
    "colour is Colour.RED, Colour(1) is colour, pair == Pair(2), type(pair) is Pair": (
        "(True, True, True, True)"
    ),
    "add(1), add.__name__, add.__wrapped__(1), fib(30), square(4)": "(16, 'add', 8, 832040, 16)",
    "here is globals(), read.__globals__ is globals()": "(True, True)",
    "m.sqrt(4), xml.etree.ElementTree.fromstring('<a/>').tag": "(2.0, 'a')",
    "shared.append(1)\nalso": "{'list': [1]}",
    "first.root": "3.0",
    "sorted(registry), registry['one'] is One, type(Made) is Meta": "(['one'], True, True)",
    "class Two(Plugin, label='two'): pass\nclass More(Made): pass\nsorted(registry)": (
        "['More', 'one', 'two']"
    ),
    "Lazy().value, show(1), show('a')": "(11, 'int', 'any')",
    "import sys\nout is sys.stdout": "True",
    "__name__, own.helper is helper, helper()": "('__main__', True, 'helped')",
    "import inspect\ninspect.getsource(read)": "'def read(): return counter\\n'",
    "type(child).__module__, Child.name.__globals__ is globals()": "('__main__', True)",
}

WAKE_AND_RUN = """
import asyncio, json, os, pathlib, pickle, sys
from torpor import messages
from torpor.testing import context

async def main():
    agent = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
    await agent.on_wake()
    ctx = context.FakeContext(pathlib.Path.cwd())
    cells = json.loads(sys.stdin.read())
    replies = [await agent.on_message(ctx, messages.Message(text=cell)) for cell in cells]
    json.dump({"texts": [r.text for r in replies], "backend": os.environ["MPLBACKEND"]}, sys.stdout)

asyncio.run(main())
"""


async def run(agent: notebook.Notebook, workspace: pathlib.Path, *sources: str) -> list[str]:
    """Run cells and return the replies' texts."""
    ctx = context.FakeContext(workspace)
    return [(await agent.on_message(ctx, Message(text=source))).text for source in sources]


def wake_elsewhere(state: bytes, workspace: pathlib.Path, sources: list[str]) -> list[str]:
    """Load the agent in another process, run cells there, return the replies' texts."""
    (workspace / "state").write_bytes(state)
    done = subprocess.run(
        [sys.executable, "-c", WAKE_AND_RUN, "state"],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        cwd=workspace,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["backend"] == "Agg"
    return list(answer["texts"])


async def test_the_namespace_in_another_process(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions, classes, instances, closures and modules work elsewhere as they did here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.py").write_text("def helper(): return 'helped'\n")
    agent = notebook.Notebook()
    before = await run(agent, tmp_path, *BEFORE)
    assert not [text for text in before if "Error" in text], before
    warned = [text.split(" will not outlive")[0] for text in before if text]
    assert [text.split()[-1] for text in warned] == ["1", "lock", "stream", "file", "thread"]
    lost = ["lock.locked()", "guarded()", "fail()", "lock = 1\nlock", "del lock\nlock"]
    texts = wake_elsewhere(cloudpickle.dumps(agent, protocol=5), tmp_path, [*AFTER, *lost])
    await run(agent, tmp_path, "file.close()")
    assert dict(zip(AFTER, texts, strict=False)) == AFTER
    gone, in_function, failed, again, deleted = texts[len(AFTER) :]
    assert "lock did not outlive the session's sleep: cannot pickle" in gone
    assert "lock did not outlive the session's sleep" in in_function
    assert "    raise ValueError('the line is shown')\n" in failed
    assert again == "1"
    assert "did not outlive" not in deleted


async def test_a_data_frame_survives(tmp_path: pathlib.Path) -> None:
    """A pandas frame and a function over it come back."""
    agent = notebook.Notebook()
    await run(
        agent, tmp_path, "import pandas as pd\nframe = pd.DataFrame({'a': [1, 2]})",
        "def total(): return int(frame['a'].sum())",
    )  # fmt: skip
    copy = cloudpickle.loads(cloudpickle.dumps(agent, protocol=5))
    assert await run(copy, tmp_path, "frame.loc[2] = 7\ntotal()") == ["10"]


async def test_state_is_pickled_once_a_cell(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check at a cell's end and the checkpoint share one pickling; a second one is fresh."""
    agent = notebook.Notebook()
    dumps: list[int] = []
    original = namespaces.Namespace.dump

    def counted(space: namespaces.Namespace) -> bytes:
        dumps.append(1)
        return original(space)

    monkeypatch.setattr(namespaces.Namespace, "dump", counted)
    await run(agent, tmp_path, "x = 1")
    cloudpickle.dumps(agent)
    assert len(dumps) == 1
    cloudpickle.dumps(agent)
    assert len(dumps) == 2


async def test_an_agent_that_was_not_woken_keeps_its_state(tmp_path: pathlib.Path) -> None:
    """Loading and pickling again without running a cell loses nothing, not even who was lost."""
    agent = notebook.Notebook()
    await run(agent, tmp_path, "x = 5\ng = (n for n in [])")
    for _ in range(2):
        agent = cloudpickle.loads(cloudpickle.dumps(agent))
    await agent.on_wake()
    agent = cloudpickle.loads(cloudpickle.dumps(agent))
    assert await run(agent, tmp_path, "x") == ["5"]
    assert "g did not outlive" in (await run(agent, tmp_path, "g"))[0]


async def test_a_variable_whose_module_is_gone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wake that cannot restore a variable fails with its name, and drops nothing silently."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "passing.py").write_text("")
    agent = notebook.Notebook()
    await run(agent, tmp_path, "import passing")
    copy = cloudpickle.loads(cloudpickle.dumps(agent))
    (tmp_path / "passing.py").unlink()
    monkeypatch.delitem(sys.modules, "passing")
    with pytest.raises(errors.CheckpointIncompatible, match="'passing' cannot be restored"):
        await copy.on_wake()
