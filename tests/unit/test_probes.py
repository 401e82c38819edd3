"""Named points: what a process does at one, and what is left of it to read.

Each process that reaches points is one of its own, for the folder is read once, at its start.
"""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import IO

import pytest

from torpor import probes
from torpor.probes import Action, Armed, Point
from torpor.testing.eventually import assert_eventually

#: A process's first lines; it says on its standard output how far it came.
PROLOGUE = """
import os, threading
from torpor.probes import Point, reach
def say(word):
    os.write(1, word.encode() + b"\\n")
"""
DIED = -signal.SIGKILL
#: Only a hung process takes so long.
PATIENCE_S = 30.0
#: Two processes meet at one point in some of these.
ROUNDS = 100

Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> probes.Probes:
    """An empty folder of probes."""
    return probes.Probes(tmp_path / "probes")


@pytest.fixture
def start(folder: probes.Probes) -> Iterator[Start]:
    """Starts a process that runs the code given, with the folder; killed at the end."""
    started = []

    def run(code: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + textwrap.dedent(code)],
            env={**os.environ, probes.VARIABLE: str(folder.folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def _ended(process: "subprocess.Popen[bytes]") -> tuple[int, list[str]]:
    """Return how a process ended, and what it said."""
    said, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said.decode().split()


def _said_so_far(process: "subprocess.Popen[bytes]") -> bytes:
    """Return what a process that stands still has said."""
    stdout = _output(process)
    os.set_blocking(stdout.fileno(), False)
    said = stdout.read()
    os.set_blocking(stdout.fileno(), True)
    return said or b""


def _output(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _stopped(process: "subprocess.Popen[bytes]") -> bool:
    """Wait until a process is stopped; False if it ended instead."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    return os.WIFSTOPPED(status)


def test_nothing_without_a_folder(folder: probes.Probes) -> None:
    """Where the environment names no folder, a point is passed in silence, armed or not."""
    folder.arm(Point.COMMIT_BEFORE)
    environment = {name: value for name, value in os.environ.items() if name != probes.VARIABLE}
    code = f"{PROLOGUE}\nreach(Point.COMMIT_BEFORE)\nsay('past')"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=folder.folder,
        stdout=subprocess.PIPE,
        check=True,
        timeout=PATIENCE_S,
    )
    assert ended.stdout == b"past\n"
    assert (folder.records(), folder.fired(Point.COMMIT_BEFORE)) == ([], [])
    assert folder.disarm(Point.COMMIT_BEFORE)


def test_records(folder: probes.Probes, start: Start) -> None:
    """Each process tells what it passed, with the facts, and the clock puts them in order."""
    first = start(
        "reach(Point.BLOB_READ, digest='d'); say('there'); input(); reach(Point.BLOB_BEFORE)"
    )
    assert _output(first).readline() == b"there\n"
    second = start("reach(Point.COMMIT_BEFORE, session='t/s', version=2, requests=['r'])")
    assert _ended(second) == (0, [])
    seen = len(folder.records())
    first.communicate(b"\n", timeout=PATIENCE_S)
    records = folder.records()
    assert seen == 2, "what was read is not all that is ever read"
    assert [(record["point"], record["pid"]) for record in records] == [
        (Point.BLOB_READ, first.pid),
        (Point.COMMIT_BEFORE, second.pid),
        (Point.BLOB_BEFORE, first.pid),
    ]
    assert records[0]["digest"] == "d"
    facts = {name: records[1][name] for name in ("session", "version", "requests")}
    assert facts == {"session": "t/s", "version": 2, "requests": ["r"]}
    assert all(record["at_s"] <= time.monotonic() for record in records)
    assert records == probes.Probes(folder.folder).records(), "reading again tells the same"


def test_half_a_line(folder: probes.Probes) -> None:
    """What a killed process left half written is not read, nor does it hide what is whole.

    A line that was only not finished yet is read once it is.
    """
    record = folder.folder / f"7-1{probes.RECORD}"
    record.write_text('{"point": "blob.read", "pid": 7, "at_s": 1.0}\n{"point": "blob.bef')
    (folder.folder / f"8-1{probes.RECORD}").write_text('{"po')
    assert [line["point"] for line in folder.records()] == [Point.BLOB_READ]
    with record.open("a") as file:
        file.write('ore", "pid": 7, "at_s": 2.0}\n')
    assert [line["at_s"] for line in folder.records()] == [1.0, 2.0]


def test_child_records_for_itself(folder: probes.Probes, start: Start) -> None:
    """A process that another forked does not write into its parent's record."""
    code = """
    reach(Point.BLOB_BEFORE)
    child = os.fork()
    reach(Point.BLOB_AFTER)
    if child:
        os.waitpid(child, 0)
    """
    process = start(code)
    assert _ended(process) == (0, [])
    pids = {record["pid"] for record in folder.records() if record["point"] == Point.BLOB_AFTER}
    assert len(pids) == 2
    assert len(list(folder.folder.glob(f"*{probes.RECORD}"))) == 2


def test_kill(folder: probes.Probes, start: Start) -> None:
    """The process ends at the armed point, after it has recorded that it was there."""
    folder.arm(Point.COMMIT_AFTER)
    process = start("reach(Point.COMMIT_BEFORE); say('on'); reach(Point.COMMIT_AFTER); say('past')")
    assert _ended(process) == (DIED, ["on"])
    assert folder.fired(Point.COMMIT_AFTER) == [process.pid]
    assert folder.fired(Point.COMMIT_BEFORE) == []
    assert [record["point"] for record in folder.records()] == ["commit.before", "commit.after"]


def test_kill_is_for_one(folder: probes.Probes, start: Start) -> None:
    """What fired is not armed any more: the next process passes."""
    folder.arm(Point.BLOB_READ)
    first = start("reach(Point.BLOB_READ)")
    assert _ended(first) == (DIED, [])
    assert not folder.disarm(Point.BLOB_READ), "it had fired"
    assert _ended(start("reach(Point.BLOB_READ); say('past')")) == (0, ["past"])
    assert folder.fired(Point.BLOB_READ) == [first.pid]
    folder.arm(Point.BLOB_READ)
    assert folder.fired(Point.BLOB_READ) == [], "armed anew, it has not fired"


def test_disarm(folder: probes.Probes, start: Start) -> None:
    """What was taken back harms nobody, and says that it had not fired."""
    folder.arm(Point.BLOB_READ)
    assert folder.disarm(Point.BLOB_READ)
    assert not folder.disarm(Point.BLOB_READ)
    assert _ended(start("reach(Point.BLOB_READ); say('past')")) == (0, ["past"])
    assert folder.fired(Point.BLOB_READ) == []


def test_only_its_session(folder: probes.Probes, start: Start) -> None:
    """A point armed for one session stays armed until that session's process comes."""
    folder.arm(Point.REPLY_BEFORE, Armed(session="t/mine"))
    others = start(
        "reach(Point.REPLY_BEFORE, session='t/other'); reach(Point.REPLY_BEFORE); say('past')"
    )
    assert _ended(others) == (0, ["past"])
    assert folder.fired(Point.REPLY_BEFORE) == []
    mine = start("reach(Point.REPLY_BEFORE, session='t/mine')")
    assert _ended(mine) == (DIED, [])
    assert folder.fired(Point.REPLY_BEFORE) == [mine.pid]


def test_stays(folder: probes.Probes, start: Start) -> None:
    """What is to stay breaks every process that comes, until it is taken back."""
    folder.arm(Point.SEAL_BEFORE, Armed(stays=True))
    processes = [start("reach(Point.SEAL_BEFORE)") for _ in range(2)]
    assert [_ended(process) for process in processes] == [(DIED, []), (DIED, [])]
    assert sorted(folder.fired(Point.SEAL_BEFORE)) == sorted(each.pid for each in processes)
    assert folder.disarm(Point.SEAL_BEFORE)
    assert _ended(start("reach(Point.SEAL_BEFORE)")) == (0, [])


@pytest.mark.parametrize("thread", ["main", "another"])
def test_freeze(folder: probes.Probes, start: Start, thread: str) -> None:
    """The process stops right at the point, whichever thread is there, and goes on when told."""
    folder.arm(Point.COMMIT_BEFORE, Armed(action=Action.FREEZE))
    code = """
    def work():
        reach(Point.COMMIT_BEFORE)
        say("past")
    """
    run = {
        "main": "work()",
        "another": "thread = threading.Thread(target=work); thread.start(); thread.join()",
    }
    process = start(textwrap.dedent(code) + run[thread])
    assert _stopped(process)
    assert folder.fired(Point.COMMIT_BEFORE) == [process.pid]
    assert _said_so_far(process) == b""
    os.kill(process.pid, signal.SIGCONT)
    assert _ended(process) == (0, ["past"])


async def test_stall(folder: probes.Probes, start: Start) -> None:
    """The thread that is at the point waits; the process's others go on."""
    folder.arm(Point.BLOB_BEFORE, Armed(action=Action.STALL, seconds=3600.0))
    process = start("""
    def write():
        reach(Point.BLOB_BEFORE)
        say("past")
    threading.Thread(target=write, daemon=True).start()
    input()
    say("alive")
    """)

    async def stalled() -> bool:
        return folder.fired(Point.BLOB_BEFORE) == [process.pid]

    await assert_eventually(stalled, PATIENCE_S)
    assert process.communicate(b"\n", timeout=PATIENCE_S)[0] == b"alive\n"


def test_stall_ends(folder: probes.Probes, start: Start) -> None:
    """After its time the thread goes on, as if nothing had been."""
    folder.arm(Point.BLOB_BEFORE, Armed(action=Action.STALL, seconds=0.01))
    process = start("reach(Point.BLOB_BEFORE); say('past')")
    assert _ended(process) == (0, ["past"])
    assert folder.fired(Point.BLOB_BEFORE) == [process.pid]


def test_race_for_a_point(folder: probes.Probes, start: Start) -> None:
    """Of two processes that pass an armed point at once, exactly one finds it, every time."""
    racers = [
        start("while input():\n    reach(Point.RELEASE_BEFORE)\n    say('past')") for _ in range(2)
    ]
    for _ in range(ROUNDS):
        folder.arm(Point.RELEASE_BEFORE, Armed(action=Action.STALL))
        for process in racers:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        assert [_output(process).readline() for process in racers] == [b"past\n"] * 2
        assert len(folder.fired(Point.RELEASE_BEFORE)) == 1
        assert not folder.disarm(Point.RELEASE_BEFORE)


def test_what_is_unseen_is_neither_recorded_nor_broken(folder: probes.Probes, start: Start) -> None:
    """What a process only rehearses is no part of a session's life, and nothing waits for it."""
    folder.arm(Point.COMMIT_BEFORE)
    process = start(
        """
        from torpor.probes import unseen
        with unseen():
            reach(Point.COMMIT_BEFORE)
        say("unseen")
        reach(Point.COMMIT_BEFORE)
        say("never")
        """
    )
    assert _ended(process) == (DIED, ["unseen"])
    assert len(folder.records()) == 1
