"""What a node's work costs, measured on real processes."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from torpor.actors import load_meter

#: Works when told to, and says when it is done; a child of the test, in a process of its own.
WORKER = """
import sys, time
for line in sys.stdin:
    until = time.process_time() + float(line)
    while time.process_time() < until:
        pass
    print("done", flush=True)
"""


class Worker:
    """A process that burns CPU on command."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def burn(self, seconds: float) -> None:
        """Use that much CPU time, and return once it is used."""
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=10)


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A child process of the test that is up."""
    made = Worker()
    made.burn(0.0)
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The meter's clock: the test sets its only item."""
    now = [100.0]
    monkeypatch.setattr(load_meter.time, "monotonic", lambda: now[0])
    return now


def _settle(meter: load_meter.LoadMeter, clock: list[float]) -> None:
    """Let the meter find its processes twice: the first time they may only be starting."""
    meter.read()
    clock[0] += load_meter.RESCAN_S
    meter.read()


def get_to_know(meter: load_meter.LoadMeter, clock: list[float]) -> None:
    """Let the meter find the processes twice, from when on they count."""
    meter.read()
    clock[0] += load_meter.RESCAN_S
    meter.read()


def test_process_counts_once_it_has_started(worker: Worker, clock: list[float]) -> None:
    """What a process uses while it starts is no load: it is over before anything is placed."""
    meter = load_meter.LoadMeter(cpus=1.0, root_pid=worker.pid)
    meter.read()
    worker.burn(0.3)
    clock[0] += 1.0
    assert meter.read().cpu == 0.0


def test_cpu_of_a_process_and_its_children(worker: Worker, clock: list[float]) -> None:
    """What a child burns shows as a share of the node's CPUs."""
    meter = load_meter.LoadMeter(cpus=2.0, root_pid=os.getpid())
    _settle(meter, clock)
    worker.burn(0.5)
    # All at once, so that smoothing does not hide it: 0.5 s of 2 x SMOOTHING_S.
    clock[0] += load_meter.SMOOTHING_S
    share = 0.5 / (2.0 * load_meter.SMOOTHING_S)
    assert 0.9 * share <= meter.read().cpu <= share + 0.2


def test_cpu_is_smoothed_and_fades(worker: Worker, clock: list[float]) -> None:
    """One busy second shows in part, and less with every quiet one."""
    meter = load_meter.LoadMeter(cpus=1.0, root_pid=worker.pid)
    _settle(meter, clock)
    worker.burn(0.5)
    clock[0] += 1.0
    readings = []
    for _ in range(4):
        readings.append(meter.read().cpu)
        clock[0] += 1.0
    assert 0.0 < readings[0] < 0.5
    assert readings == sorted(readings, reverse=True)
    assert len(set(readings)) == 4


def test_start_of_a_process_does_not_count(worker: Worker, clock: list[float]) -> None:
    """What a process burns before it was found twice is no load of the sessions."""
    meter = load_meter.LoadMeter(cpus=1.0, root_pid=worker.pid)
    meter.read()
    worker.burn(0.3)
    clock[0] += load_meter.RESCAN_S
    assert meter.read().cpu == 0.0


def test_past_of_a_new_process_does_not_count(worker: Worker, clock: list[float]) -> None:
    """CPU that a process had used before it was first seen is no load of this second."""
    worker.burn(0.3)
    meter = load_meter.LoadMeter(cpus=1.0, root_pid=1 << 30)
    meter.read([worker.pid])
    clock[0] += load_meter.SMOOTHING_S
    assert meter.read([worker.pid]).cpu == 0.0
    worker.burn(0.3)
    clock[0] += load_meter.SMOOTHING_S
    assert meter.read([worker.pid]).cpu >= 0.3 / load_meter.SMOOTHING_S * 0.9


def test_process_that_is_gone(worker: Worker, clock: list[float]) -> None:
    """A process that has ended costs nothing and is no error."""
    assert load_meter.process_cpu_s(worker.pid) is not None
    assert load_meter.process_rss_bytes(worker.pid) > 1 << 20
    meter = load_meter.LoadMeter(cpus=1.0, root_pid=worker.pid)
    worker.burn(0.1)
    meter.read()
    worker.close()
    clock[0] += 1.0
    meter.read([worker.pid])
    assert load_meter.process_cpu_s(worker.pid) is None
    assert load_meter.process_rss_bytes(worker.pid) == 0


def test_machine_as_a_whole(worker: Worker, clock: list[float]) -> None:
    """Without a root process the whole machine is measured; memory is a share of it."""
    meter = load_meter.LoadMeter(cpus=1.0, root_pid=None)
    meter.read()
    worker.burn(0.5)
    clock[0] += load_meter.SMOOTHING_S
    reading = meter.read()
    assert reading.cpu >= 0.5 / load_meter.SMOOTHING_S * 0.9
    assert 0.0 < reading.memory < 1.0
