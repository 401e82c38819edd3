"""What the battery measures while nodes are lost or frozen, and of whom."""

import asyncio
import os
import pathlib
import signal
import sys
import types
from typing import Any

import pytest

from torpor.testing import recording

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "chaos"))

import fault
import jobs
import measures
import procfs
import schedule
from in_process_service import GATEWAYS, Client, Session, World, a_fault


def test_what_is_measured_depends_on_the_kind_of_fault() -> None:
    """Sessions of a lost node where all are called at once, the others where they are not."""
    world = types.SimpleNamespace(lease_ttl_ms=3_000)
    made = measures.Measures(world, types.SimpleNamespace(rate_per_s=1.0))
    for name, watch in (
        ("fullest node lost, all sessions called at once", measures.Answering),
        ("node lost", measures.Elsewhere),
        ("node frozen past its lease, thawed in its turns", measures.Elsewhere),
        ("node agent frozen past its lease", measures.Standing),
    ):
        turn = schedule.Turn(fault=a_fault(name, fault.Cost.EXPENSIVE), run=0)
        assert isinstance(made.watch(turn, 1.0), watch), name


def test_figures_are_held_against_what_was_measured_in_the_same_run() -> None:
    """Two leases and a wake; turns before the fault."""
    world = types.SimpleNamespace(lease_ttl_ms=3_000)
    made = measures.Measures(world, types.SimpleNamespace())
    assert made.figures() == []
    made.wakes_s, made.again_s = [1.0], [5.0]
    made.before_s, made.during_s = [0.010], [0.013]
    again, _, elsewhere = made.figures()
    assert (again.floor, again.value, again.reached) == (7.0, 5.0, True)
    assert elsewhere.ratio == pytest.approx(1.3)
    assert not elsewhere.reached


async def test_sessions_of_a_dead_node_are_called_until_they_answer(tmp_path: pathlib.Path) -> None:
    """The time counts from the death of their process to the end of their first answer."""
    process = await asyncio.create_subprocess_exec("sleep", "60")
    slot = jobs.Slot("red", "red-1")
    resident = types.SimpleNamespace(session=slot.key, epoch=1, pid=process.pid, node="node-1")
    other = types.SimpleNamespace(session="red/red-2", epoch=1, pid=os.getpid(), node="node-2")
    world = World(tmp_path)
    world.residents = lambda: _soon([resident, other])  # type: ignore[method-assign]
    recorder = recording.Recorder()
    world.service.sessions[slot.key] = Session()
    client = Client(world.service, tenant="red", recorder=recorder)
    running = types.SimpleNamespace(
        slots=[slot, jobs.Slot("red", "red-2")],
        call_everybody=lambda: _soon(None),
        append=lambda each, once: client.append(each.session),
    )
    taken: list[float] = []
    async with measures.Answering(world, running, taken) as watch:
        assert taken == []
        process.kill()
        await process.wait()
        await watch.stand()
    assert len(taken) == 1
    assert 0 <= taken[0] < measures.AGAIN_MAX_S
    assert procfs.state(process.pid) == ""


async def test_turns_elsewhere_are_those_on_nodes_that_go_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions of a stopped node are left out, others not: nor if they refuse, or have died."""
    monkeypatch.setattr(measures, "BEFORE_S", 0.1)
    monkeypatch.setattr(measures, "SETTLE_S", 0.0)
    monkeypatch.setattr(measures, "SAMPLES_PER_S", 100.0)
    frozen = await asyncio.create_subprocess_exec("sleep", "60")
    slots = [jobs.Slot("red", "red-1"), jobs.Slot("red", "red-2")]
    residents = [
        types.SimpleNamespace(session=slot.key, epoch=1, pid=frozen.pid, node=node)
        for slot, node in zip(slots, GATEWAYS, strict=False)
    ]
    world = World(tmp_path)
    raylets = dict(zip(GATEWAYS, (frozen.pid, os.getpid()), strict=False))
    for name, node in world.nodes.items():
        node.find = lambda _role, name=name: [raylets[name]] if name in raylets else []
    world.residents = lambda: _soon(residents)  # type: ignore[method-assign]
    recorder = recording.Recorder()
    client = Client(world.service, tenant="red", recorder=recorder)
    for slot in slots:
        world.service.sessions[slot.key] = Session()
    running = types.SimpleNamespace(
        quiet=slots, rate_per_s=30.0, append=lambda slot, **_: client.append(slot.session)
    )
    before: list[float] = []
    during: list[float] = []
    async with measures.Elsewhere(world, running, before, during) as watch:
        assert running.rate_per_s == measures.QUIET_RATE_PER_S
        frozen.send_signal(signal.SIGSTOP)
        world.service.away = True
        await watch.stand()
    frozen.kill()
    await frozen.wait()
    assert running.rate_per_s == 30.0
    elsewhere = [each for each in recorder.operations if each.session == "red-2"]
    assert max(before) < measures.AGAIN_MAX_S
    assert max(during) == measures.AGAIN_MAX_S
    # All but the first one, which only woke it.
    assert len(before) + len(during) == len(elsewhere) - 1


async def _soon(value: Any) -> Any:
    return value
