"""The benchmark's own arithmetic and waiting: what it says must be what it measured."""

import asyncio
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import types
from collections.abc import Iterator

import msgspec
import pytest
import redis

from torpor.testing import valkey

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from loadtests import (
    balance,
    bench,
    figures,
    machine,
    plain_chain,
    processes,
    slot_stock,
    soak,
    waiting,
    waking,
)


def test_p99_leaves_one_of_a_hundred_above() -> None:
    """The 99th percentile is a sample that was taken; of few samples it is the worst."""
    assert figures.p99([float(i) for i in range(1, 101)]) == 99
    assert figures.p99([float(i) for i in range(110, 0, -1)]) == 109
    assert figures.p99([3.0, 1.0, 2.0]) == 3


def test_slope_is_growth_from_look_to_look() -> None:
    """A line's slope is exact, what is flat has none, and noise around it does not tilt it much."""
    assert figures.slope([5.0, 7.0, 9.0, 11.0]) == pytest.approx(2)
    assert figures.slope([5.0, 5.0, 5.0]) == 0
    assert abs(figures.slope([5.0, 6.0] * 50)) < 0.01


@pytest.mark.parametrize(
    ("better", "value", "reached"),
    [("lower", 2.0, True), ("lower", 2.2, False), ("higher", 2.2, True), ("higher", 1.8, False)],
)
def test_a_target_has_a_direction(better: figures.Better, value: float, reached: bool) -> None:
    """A figure where higher is better is held against its target from below."""
    row = figures.figure("it", "ms", value, floor=1.0, target=2.0, better=better)
    assert row.reached is reached


def test_table_and_file_say_the_same(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every figure is in the table with the right sign, and in the file as it was given."""
    rows = [
        figures.figure("slow", "ms", 3.0, floor=2.0, target=1.0),
        figures.figure("many", "turns/s", 3.0, floor=1.0, target=2.0, better="higher"),
        figures.figure("stated", "ms", 3.0),
    ]
    path = tmp_path / "build" / "bench.json"
    figures.write(rows, path)
    assert msgspec.json.decode(path.read_bytes(), type=list[figures.Figure]) == rows
    printed = capsys.readouterr().out
    assert "≤ 1" in printed
    assert "≥ 2" in printed


def test_soak_runs_only_when_named() -> None:
    """The soak takes an hour: it is no part of the default run."""
    assert bench.SOAK not in bench.SCENARIOS


async def test_soak_refuses_too_few_cycles() -> None:
    """While caches fill, a slope would say nothing."""
    with pytest.raises(RuntimeError, match="at least"):
        await soak.soak(types.SimpleNamespace(), soak.GROWING_CYCLES)


async def test_waiting_ends() -> None:
    """What comes about is waited for; what does not is said."""
    looks = iter([False, True])

    async def second_look() -> bool:
        return next(looks)

    await waiting.until(second_look, "it happens", 10.0)

    async def never() -> bool:
        return False

    with pytest.raises(RuntimeError, match="until it happens"):
        await waiting.until(never, "it happens", 0.0)


async def test_few_at_a_time() -> None:
    """No more than allowed are under way, all are done, and results keep their order."""
    under_way = 0
    most = 0

    async def one(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return number

    calls = [lambda i=i: one(i) for i in range(10)]
    assert await waiting.few_at_a_time(calls, 3) == list(range(10))
    assert most == 3


async def test_idle_cpu_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine spends anyway, over as long a time, is not what the work costs."""
    readings = iter([100.0, 112.0, 115.0])
    monkeypatch.setattr(machine, "cpu_s", lambda: next(readings))
    assert await machine.spent_s(asyncio.sleep(0)) == 9.0


class Operators:
    """A deployment as operators see it, whose stock is another at each look."""

    def __init__(self, *looks: list[tuple[str, int, bool]]) -> None:
        self.client = types.SimpleNamespace(admin=self)
        self._looks = list(looks)

    async def nodes(self) -> list[types.SimpleNamespace]:
        """Return the next look; the last one over and over."""
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        return [
            types.SimpleNamespace(id=node, slots_in_stock=slots, alive=True, draining=draining)
            for node, slots, draining in look
        ]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal looks are steady, and looks follow at once."""
    monkeypatch.setattr(slot_stock, "STEADY_S", 1e-9)
    monkeypatch.setattr(waiting, "POLL_S", 0.0)


@pytest.mark.usefixtures("impatient")
async def test_stock_is_waited_for() -> None:
    """The slot has to be on the node asked for, and drained nodes do not count."""
    here = Operators(
        [("a", 0, False), ("b", 3, False)],
        [("a", 0, False), ("b", 3, False)],
        [("a", 2, False), ("b", 3, False), ("c", 7, True)],
    )
    assert await slot_stock.steady(here, on="a") == {"a": 2, "b": 3}


@pytest.mark.usefixtures("impatient")
async def test_stock_that_nobody_wants_is_waited_for() -> None:
    """Memory is compared once no node holds a slot for anybody."""
    here = Operators([("a", 1, False)], [("a", 0, False), ("b", 1, False)], [("a", 0, False)])
    await slot_stock.empty(here)
    assert await slot_stock.by_node(here) == {"a": 0}


@pytest.mark.usefixtures("impatient")
async def test_missing_slot_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that never has a slot ends the wait with its name."""
    monkeypatch.setattr(slot_stock, "REFILL_TIMEOUT_S", 0.0)
    with pytest.raises(RuntimeError, match="node a has a slot"):
        await slot_stock.steady(Operators([("a", 0, False)]), on="a")


def measured(raylets: list[str], cores: float = 0.1) -> dict[balance.Process, float]:
    """Return sessions spread evenly over the nodes of these raylets, and an outsider on the first.

    Each session uses so many cores, and the outsider as many as a node's sessions do.
    """
    nodes = len(raylets)
    found = {
        balance.Process(pid=pid, outside=False, raylet=raylets[pid % nodes]): cores
        for pid in range(balance.SESSIONS)
    }
    outsider = balance.Process(pid=balance.SESSIONS, outside=True, raylet=raylets[0])
    return found | {outsider: cores * balance.SESSIONS / nodes}


def test_load_is_that_of_nodes() -> None:
    """The node with the outsider carries twice what each of the two others does."""
    row = balance.row(measured(["7", "8", "9"]), random.Random(7))
    assert row.value == pytest.approx(2 / (4 / 3))
    assert "CPU of sessions 6.00 cores, outside 2.00" in row.against


@pytest.mark.parametrize("raylets", [["7", "8"], ["7", "8", "9", ""]])
def test_load_of_other_nodes_than_there_are_is_no_figure(raylets: list[str]) -> None:
    """A node that is missing, or a process of none, would make the mean another one."""
    with pytest.raises(RuntimeError, match=f"on {len(raylets)} nodes"):
        balance.row(measured(raylets), random.Random(7))


@contextlib.contextmanager
def running(title: str, raylet: int, program: str) -> Iterator["subprocess.Popen[str]"]:
    """Run Python code under a title, in the environment of a raylet's worker."""
    with subprocess.Popen(
        [title, "-c", program],
        executable=sys.executable,
        env={**os.environ, processes.RAYLET: str(raylet)},
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_forked_process_is_of_its_servers_raylet() -> None:
    """Whatever a child makes of its environment, the machine shows that of the server's start."""
    program = (
        "import os, sys\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "else: os.environ.clear()\n"
        "sys.stdin.read()\n"
    )
    with running(balance.SESSION, 123, program) as server:
        assert server.stdout is not None
        child = int(server.stdout.readline())
        found = {each.pid: each for each in balance.cpu_s()}
        assert found[child] == balance.Process(pid=child, outside=False, raylet="123")


def test_fork_servers_of_others_are_left_alone(tmp_path: pathlib.Path) -> None:
    """Only those end whose raylet this process started."""
    path = tmp_path / "raylet"
    path.symlink_to("/bin/sleep")
    program = "import sys; print(flush=True); sys.stdin.read() # fork_server.main()"
    with subprocess.Popen([path, "60"]) as raylet:
        with running("ours", raylet.pid, program) as ours, running("other", 1, program) as other:
            for server in (ours, other):
                assert server.stdout is not None
                server.stdout.readline()
            processes.end_fork_servers()
            assert ours.wait(10) == -signal.SIGKILL
            assert other.poll() is None
        raylet.kill()


def test_no_wake_is_left_unsaid() -> None:
    """Wakes without a slot are in rows of their own beside those that had one."""
    taken = waking.Samples(wakes=[0.01] * 98, missed=[0.5, 0.6])
    middle, worst = waking.all_wakes("wake", taken)
    assert (middle.name, middle.value, middle.target) == ("wake, all of them, p50 of 100", 10, None)
    assert worst.value == 500
    assert worst.against.startswith("2 of them")


def test_plain_chain_commits_and_is_fenced(store_server: valkey.Server) -> None:
    """The chain that figures are held against does what it is there for: every turn is stored."""
    session = plain_chain.PlainSession(store_server.url, 1)
    assert session.turn(b"abc") == b"cba"
    assert session.turn(b"abc") == b"cba"
    client = redis.Redis.from_url(store_server.url)
    head = "{plain-1}:head"
    assert client.hget(head, "version") == b"2"
    assert client.strlen("{plain-1}:state") == plain_chain.floors.COMMIT_BYTES
    client.hset(head, "epoch", 2)
    with pytest.raises(RuntimeError, match="fenced"):
        session.turn(b"abc")
    client.close()
