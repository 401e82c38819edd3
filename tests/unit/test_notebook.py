"""The notebook agent in one process: what a cell answers, prints, changes and leaves behind."""

import pathlib
import sys
import threading

import msgspec
import pytest

from torpor import errors
from torpor.agents import cells, files, notebook, output
from torpor.messages import Event, Message, Reply
from torpor.testing import context


class Session:
    """A notebook with its folder."""

    def __init__(self, workspace: pathlib.Path) -> None:
        self.agent = notebook.Notebook()
        self.context = context.FakeContext(workspace)

    async def run(self, source: str, **data: object) -> Reply:
        """Send one cell."""
        return await self.agent.on_message(self.context, Message(text=source, data=data))


@pytest.fixture
def session(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Return a fresh notebook whose workspace is the working directory."""
    monkeypatch.chdir(tmp_path)
    return Session(tmp_path)


async def test_output_and_value(session: Session) -> None:
    """A reply has what was printed and the last expression's repr, apart and as one text."""
    reply = await session.run("import sys\nprint('hi')\nprint('oh', file=sys.stderr)\n6 * 7")
    assert reply.text == "hi\n42"
    assert reply.data["stdout"] == "hi\n"
    assert reply.data["stderr"] == "oh\n"
    assert reply.data["value"] == "42"
    assert reply.data["error"] is None
    assert reply.data["warnings"] == []
    assert not reply.data["interrupted"]


async def test_variables_stay_between_cells(session: Session) -> None:
    """A later cell sees what an earlier one defined; a statement at the end has no value."""
    assert (await session.run("x = 41")).data["value"] is None
    assert (await session.run("x + 1")).text == "42"


async def test_error_is_content(session: Session) -> None:
    """An exception is in the reply, with the user's lines alone, and what went before is kept."""
    await session.run("def divide(a):\n    return a / 0")
    reply = await session.run("kept = 1\ndivide(3)")
    error = reply.data["error"]
    assert error["type"] == "ZeroDivisionError"
    assert 'File "<cell 1>", line 2, in divide\n    return a / 0' in error["traceback"]
    assert 'File "<cell 2>", line 2' in error["traceback"]
    assert "torpor" not in error["traceback"]
    assert reply.text == error["traceback"]
    assert (await session.run("kept")).text == "1"


async def test_library_frames_are_left_out(session: Session) -> None:
    """A traceback through the standard library names only the cell, also in its cause."""
    reply = await session.run(
        "import json\n"
        "try:\n    json.loads('{')\n"
        "except ValueError as error:\n    raise KeyError('no') from error"
    )
    traceback = reply.data["error"]["traceback"]
    assert "decoder.py" not in traceback
    assert "JSONDecodeError" in traceback
    assert traceback.endswith("KeyError: 'no'")


async def test_syntax_error(session: Session) -> None:
    """A cell that is no Python says where."""
    error = (await session.run("x = 1\ny = (")).data["error"]
    assert error["type"] == "SyntaxError"
    assert 'File "<cell 1>", line 2' in error["traceback"]


async def test_top_level_await(session: Session) -> None:
    """`await` works at the top of a cell, and the value is the last expression's."""
    reply = await session.run("import asyncio\nawait asyncio.sleep(0)\nawait asyncio.sleep(0, 7)")
    assert reply.text == "7"


@pytest.mark.parametrize("source", ["exit()", "import sys; sys.exit(3)", "raise SystemExit"])
async def test_exit_ends_the_cell_only(session: Session, source: str) -> None:
    """Leaving is content too: the next cell runs."""
    reply = await session.run(f"x = 1\n{source}")
    assert reply.data["error"]["type"] == "SystemExit"
    assert "not the session" in reply.text
    assert (await session.run("x")).text == "1"


async def test_input_says_what_to_do(session: Session) -> None:
    """`input()` fails with the remedy and leaves the process's standard input alone."""
    before = sys.stdin
    reply = await session.run("input('name? ')")
    assert "with the next message" in reply.data["error"]["message"]
    assert sys.stdin is before


async def test_long_output_is_cut_in_the_middle(session: Session) -> None:
    """Output beyond the bound keeps its beginning and end and says how much is missing."""
    reply = await session.run(
        "print('first')\nfor _ in range(3000): print('x' * 99)\nprint('last')"
    )
    stdout = reply.data["stdout"]
    assert stdout.startswith("first\n")
    assert stdout.endswith("last\n")
    dropped = 300_000 + len("first\nlast\n") - output.CONSOLE_CHARS_MAX
    assert f"[… {dropped} characters left out …]" in stdout


async def test_long_value_is_cut(session: Session) -> None:
    """A huge repr is bounded."""
    value = (await session.run("'x' * 1_000_000")).data["value"]
    assert len(value) < cells.VALUE_CHARS_MAX + 100
    assert "characters left out" in value


async def test_a_reply_is_utf_8(session: Session) -> None:
    """Text that UTF-8 has no bytes for is written out, wherever it turns up in the reply."""
    reply = await session.run(
        "open(b'\\xff.txt', 'w').close()\nprint('\\udcff')\n"
        "class Bad:\n    def __reduce__(self): raise ValueError('\\udcff')\n"
        "bad = Bad()\nraise ValueError('\\udcff')"
    )
    assert reply.text.encode()
    assert msgspec.json.encode(reply.data)
    assert reply.data["files"][0]["path"] == "\\udcff.txt"
    assert reply.data["stdout"] == reply.data["error"]["message"] + "\n" == "\\udcff\n"


async def test_threads_of_a_cell_print_into_it(session: Session) -> None:
    """What a thread prints while the cell runs is part of its output."""
    reply = await session.run(
        "import threading\nt = threading.Thread(target=print, args=('there',))\n"
        "t.start(); t.join()\ndel t"
    )
    assert reply.data["stdout"] == "there\n"


async def test_a_logging_handler_goes_on_in_later_cells(session: Session) -> None:
    """What one cell sets up to write to the error stream writes into later cells' replies."""
    await session.run(
        "import logging\nlog = logging.getLogger('of the test')\n"
        "log.addHandler(logging.StreamHandler())"
    )
    reply = await session.run("log.warning('look')")
    assert reply.data["stderr"] == "look\n"
    await session.run("log.handlers.clear()")


async def test_main_is_the_notebook(session: Session) -> None:
    """`__main__` is the notebook while a cell runs, so that its classes can be pickled."""
    before = sys.modules["__main__"]
    reply = await session.run(
        "import pickle\nclass P: pass\n__name__, type(pickle.loads(pickle.dumps(P()))) is P"
    )
    assert reply.text == "('__main__', True)"
    assert sys.modules["__main__"] is before


async def test_files_that_changed(session: Session, tmp_path: pathlib.Path) -> None:
    """A reply lists the files that a cell made or changed, not the others."""
    (tmp_path / "old.txt").write_text("as it was")
    (tmp_path / "log.txt").write_text("1")
    reply = await session.run(
        "import pathlib\npathlib.Path('out').mkdir()\n"
        "_ = pathlib.Path('out/new.txt').write_text('abc')\n"
        "_ = pathlib.Path('log.txt').write_text('12')"
    )
    assert reply.data["files"] == [
        {"path": "log.txt", "size_bytes": 2},
        {"path": "out/new.txt", "size_bytes": 3},
    ]


async def test_too_many_files_is_said(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """When not all changed files are listed, a warning says so."""
    monkeypatch.setattr(files, "LISTED_MAX", 2)
    reply = await session.run("for n in range(3): open(f'{n}', 'w').close()")
    assert len(reply.data["files"]) == 2
    assert "not complete" in reply.data["warnings"][0]


@pytest.mark.parametrize(
    "loop",
    [
        "while True: n += 1",
        "import asyncio\nn += 1\nawait asyncio.sleep(3600)",
        "while n < 10**12:\n    try:\n        n += 1\n    except Exception: pass",
    ],
)
async def test_a_cell_that_runs_too_long_is_interrupted(session: Session, loop: str) -> None:
    """Past its time a cell is stopped, also while it awaits; the variables keep what it did."""
    reply = await session.run(f"n = 0\n{loop}", timeout_s=0.1)
    assert reply.data["interrupted"]
    assert "interrupted after 0.1 s" in reply.text
    assert (await session.run("n > 0")).text == "True"


async def test_a_cell_stuck_in_c_fails_the_turn(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell that cannot be interrupted ends the turn with an error that says so."""
    monkeypatch.setattr(cells, "INTERRUPTS_MAX", 2)
    monkeypatch.setattr(cells, "INTERRUPT_PAUSE_S", 0.05)
    source = "import threading\ngate = threading.Lock()\ngate.acquire()\ngate.acquire()"
    with pytest.raises(errors.TurnTimedOut, match="could not be interrupted"):
        await session.run(source, timeout_s=0.1)
    assert session.agent._space is not None
    session.agent._space.variables["gate"].release()
    for thread in [t for t in threading.enumerate() if t.name == "<cell 1>"]:
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.mark.parametrize("timeout_s", [0, -1, "5", True, 10_000])
async def test_bad_timeouts_are_refused(session: Session, timeout_s: object) -> None:
    """A timeout that is no positive number within the turn's limit is refused before the cell."""
    with pytest.raises(errors.InvalidField, match="timeout_s"):
        await session.run("x = 1", timeout_s=timeout_s)
    assert session.agent.cells == 0


async def test_warning_for_what_cannot_be_kept(session: Session) -> None:
    """A variable that cannot be pickled works, and its name is said once."""
    reply = await session.run("import threading\nlock = threading.Lock()\nx = 1\nlock.locked()")
    assert reply.data["value"] == "False"
    assert len(reply.data["warnings"]) == 1
    assert "lock will not outlive this process" in reply.text
    assert (await session.run("lock.locked()")).data["warnings"] == []


async def test_emit_in_a_fake_context_has_the_real_rules(tmp_path: pathlib.Path) -> None:
    """The context for unit tests collects events and refuses those that a session would refuse."""
    ctx = context.FakeContext(tmp_path)
    await ctx.emit("weather.asked", {"place": "Oslo"})
    ctx.stream("de")
    assert ctx.emitted == [("weather.asked", {"place": "Oslo"})]
    assert ctx.streamed == ["de"]
    for type_, data in [("agent.message", {}), ("Bad", {}), ("a.b", {"x": object()})]:
        with pytest.raises(errors.InvalidField):
            await ctx.emit(type_, data)


async def test_history_in_a_fake_context_is_paged(tmp_path: pathlib.Path) -> None:
    """The context for unit tests pages through the events that the test committed, by type."""
    committed = [
        Event(seq=seq, type="user.message" if seq % 2 else "a.note", data={}, version=1, at_ms=0)
        for seq in range(1, 7)
    ]
    history = context.FakeContext(tmp_path, committed=committed).history
    page = await history.page(limit=2, types=["user.message"])
    assert ([event.seq for event in page.events], page.next_after) == ([1, 3], 3)
    page = await history.page(after=3, types=["user.message"])
    assert ([event.seq for event in page.events], page.next_after) == ([5], None)
    assert [event.seq for event in await history.tail(2)] == [5, 6]
