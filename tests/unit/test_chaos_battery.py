"""The battery blames the fault that did it, and overlooks nothing that went wrong."""

import asyncio
import contextlib
import json
import os
import pathlib
import random
import sys
import time
import types
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from torpor import messages
from torpor.testing import invariants, recording, witness_client

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "chaos"))

import battery
import fault
import load
import report
import schedule
from in_process_service import GATEWAYS, Client, World, a_fault


class Ran:
    """A run that is over."""

    def __init__(self, world: World, run: battery.Battery, said: list[str]) -> None:
        self.world = world
        self.run = run
        self.said = said

    def row(self, name: str) -> report.Row:
        """Return what came of a fault."""
        return self.run.accounts[name].row()


Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a coroutine function that runs faults over a service in this process."""
    monkeypatch.setattr(battery, "HEALTHY_MAX_S", 0.3)
    monkeypatch.setattr(battery, "GIVE_UP_S", 0.1)
    monkeypatch.setattr(battery, "PAUSE_MAX_S", 0.5)
    monkeypatch.setattr(load, "PROBE_PAUSE_S", 0.01)

    async def run_faults(*faults: fault.Fault, together: bool = False) -> Ran:
        world, said = World(tmp_path / "world"), []
        monkeypatch.setattr(
            witness_client, "Client", lambda **fields: Client(world.service, **fields)
        )
        recorder = recording.Recorder(tmp_path / "operations.jsonl")
        turns = tuple(schedule.Turn(fault=each, run=0) for each in faults)
        groups = [turns] if together else [(turn,) for turn in turns]
        async with load.Load(world, recorder, random.Random("7"), rate_per_s=500.0) as running:
            made = battery.Battery(
                world,
                running,
                invariants.Checker(recorder),
                seed="7",
                folder=tmp_path,
                say=lambda _: None,
                warn=said.append,
            )
            steps = [schedule.Step(turns=group, required=True) for group in groups]
            await made.run(steps, until_s=time.monotonic())
        recorder.close()
        return Ran(world, made, said)

    return run_faults


async def test_a_fault_that_breaks_nothing_violates_nothing(run: Run) -> None:
    """Its row has its run, its operations and the time until health; nothing is unknown."""
    ran = await run(a_fault("nothing"))
    row = ran.row("nothing")
    assert row.held
    assert (row.runs, row.unknown, row.violations, row.errors) == (1, 0, 0, ())
    assert row.operations >= len(GATEWAYS) * load.IN_A_ROW
    assert row.healthy_after_s is not None
    assert (ran.run.violations, ran.run.broken_off, ran.said) == ([], "", [])


async def test_a_violation_is_held_against_the_fault_that_stood(
    run: Run, tmp_path: pathlib.Path
) -> None:
    """It is printed with seed, fault and run, and what is needed to look into it is kept."""

    @contextlib.asynccontextmanager
    async def leak(world: World, _rng: random.Random) -> AsyncIterator[None]:
        world.service.leaky = True
        (world.probes.folder / f"{os.getpid()}-1.jsonl").touch()
        await world.service.leaked.wait()
        yield
        world.service.leaky = False

    ran = await run(a_fault("before"), a_fault("leak", inject=leak), a_fault("after"))
    assert [ran.row(name).violations > 0 for name in ("before", "leak", "after")] == [
        False,
        True,
        False,
    ]
    assert {violation.invariant for violation in ran.run.violations} == {"I7"}
    assert any("'leak' run 0, seed 7" in line for line in ran.said)
    lines = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [line["faults"][0][0] for line in lines if line.get("violations")] == ["leak"]
    assert (tmp_path / "probes" / f"{os.getpid()}-1.jsonl").exists()
    assert recording.load(tmp_path / "operations.jsonl")


async def test_records_of_processes_that_have_ended_are_filed_away(
    run: Run, tmp_path: pathlib.Path
) -> None:
    """Nobody has to read them again, and they are there for whoever looks into the run."""

    @contextlib.asynccontextmanager
    async def kill(world: World, _rng: random.Random) -> AsyncIterator[None]:
        process = await asyncio.create_subprocess_exec("true")
        await process.wait()
        (world.probes.folder / f"{process.pid}-1.jsonl").touch()
        (world.probes.folder / f"{os.getpid()}-1.jsonl").touch()
        yield

    await run(a_fault("kill", inject=kill))
    (filed,) = (tmp_path / "probes").iterdir()
    (left,) = (tmp_path / "world" / "probes").iterdir()
    assert left.name.startswith(f"{os.getpid()}-")
    assert filed.name != left.name


async def test_a_fault_that_cannot_be_injected_is_an_error_of_its_row(run: Run) -> None:
    """The run goes on, and does not pass."""

    @contextlib.asynccontextmanager
    async def unable(_world: World, _rng: random.Random) -> AsyncIterator[None]:
        raise RuntimeError("there is no such node")
        yield

    ran = await run(a_fault("unable", inject=unable), a_fault("after"))
    row = ran.row("unable")
    assert (row.runs, row.held, row.violations) == (0, False, 0)
    assert "there is no such node" in row.errors[0]
    assert ran.row("after").held


async def test_a_fault_that_fails_in_company_is_tried_alone(run: Run) -> None:
    """Faults may be in each other's way: only what fails alone is an error."""
    tries = []

    @contextlib.asynccontextmanager
    async def shy(_world: World, _rng: random.Random) -> AsyncIterator[None]:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("somebody is in the way")
        yield

    ran = await run(a_fault("shy", inject=shy), a_fault("other"), together=True)
    assert len(tries) == 2
    assert (ran.row("shy").runs, ran.row("shy").errors) == (1, ())
    assert ran.row("other").runs == 1


async def test_a_verdict_holds_in_company(run: Run, tmp_path: pathlib.Path) -> None:
    """What a fault saw go wrong is an error of its row, also if it does not come again alone."""
    tries = []

    @contextlib.asynccontextmanager
    async def strict(_world: World, _rng: random.Random) -> AsyncIterator[None]:
        tries.append(1)
        if len(tries) == 1:
            raise fault.Wrong("nonsense was answered with INTERNAL")
        yield

    ran = await run(a_fault("strict", inject=strict), a_fault("other"), together=True)
    assert len(tries) == 1
    (why,) = ran.row("strict").errors
    assert "INTERNAL" in why
    assert not ran.row("strict").held
    assert any("INTERNAL" in line for line in ran.said)
    assert ran.row("other").held
    assert "INTERNAL" in (tmp_path / "faults.jsonl").read_text()


async def test_a_fault_that_never_heals_ends_the_run(run: Run) -> None:
    """It violates I6, and nothing further is broken."""

    @contextlib.asynccontextmanager
    async def fatal(world: World, _rng: random.Random) -> AsyncIterator[None]:
        world.service.away = True
        yield

    ran = await run(a_fault("fatal", inject=fatal), a_fault("never"))
    row = ran.row("fatal")
    assert (row.unhealthy, row.healthy_after_s, row.held) == (1, None, False)
    assert row.unknown > 0
    assert "I6" in {violation.invariant for violation in ran.run.violations}
    assert "fatal" in ran.run.broken_off
    assert "never" not in ran.run.accounts


@pytest.mark.parametrize("loses", [True, False])
async def test_a_loss_has_to_be_reported_and_allowed(run: Run, loses: bool) -> None:
    """What is reported is excused for a fault that may lose, and for no other."""

    @contextlib.asynccontextmanager
    async def lossy(world: World, _rng: random.Random) -> AsyncIterator[None]:
        # A session that the load leaves alone: it is asked again by nobody who knows better.
        session = world.service.sessions["red/red-7"]
        session.commit((messages.AGENT_OUTPUT, {}))
        session.lose()
        yield

    ran = await run(a_fault("lossy", inject=lossy, loses=loses, fails_over=loses))
    row = ran.row("lossy")
    assert row.losses_reported == 1
    assert (row.violations == 0) is loses


@pytest.mark.parametrize("damaged", ["red/red-7", "red/red-8"])
async def test_damage_excuses_the_session_that_is_damaged_alone(run: Run, damaged: str) -> None:
    """Another session that reports a loss meanwhile is a violation."""

    @contextlib.asynccontextmanager
    async def torn(world: World, _rng: random.Random) -> AsyncIterator[None]:
        version = world.service.sessions[damaged].version
        world.damaged.append(types.SimpleNamespace(key=damaged, version=version, whole=0))
        world.service.sessions["red/red-7"].lose_state()
        yield

    ran = await run(a_fault("torn", inject=torn, loses=True))
    assert ran.row("torn").losses_reported == 1
    assert (ran.row("torn").violations == 0) is (damaged == "red/red-7")


async def test_a_load_that_fails_is_an_error_of_the_row(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that raises is the battery's own fault, and never overlooked."""

    @contextlib.asynccontextmanager
    async def confusing(world: World, _rng: random.Random) -> AsyncIterator[None]:
        monkeypatch.setattr(Client, "get", Client.__aexit__)
        world.service.leaked.set()
        await asyncio.sleep(0.1)
        yield

    ran = await run(a_fault("confusing", inject=confusing))
    assert "the load failed: " in ran.row("confusing").errors[0]


async def test_requests_are_delivered_several_times_when_a_world_says_so(run: Run) -> None:
    """Each append of the load is one request in several operations, and is there once."""

    @contextlib.asynccontextmanager
    async def duplicated(world: World, _rng: random.Random) -> AsyncIterator[None]:
        world.duplicate = 3
        await asyncio.sleep(0.05)
        yield
        world.duplicate = 1

    ran = await run(a_fault("duplicated", inject=duplicated))
    assert ran.row("duplicated").held
    operations = ran.run._load.recorder.operations
    deliveries = [each.request_id for each in operations if each.request_id.startswith("r")]
    assert max(deliveries.count(request_id) for request_id in set(deliveries)) == 3


async def test_a_session_is_read_to_its_end_before_it_is_deleted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker gets a last reading of it: what was acknowledged by then is judged."""
    world = World(tmp_path)
    monkeypatch.setattr(witness_client, "Client", lambda **fields: Client(world.service, **fields))
    async with load.Load(
        world, recording.Recorder(), random.Random("7"), rate_per_s=1.0
    ) as running:
        slot = running.quiet[0]
        await running.append(slot)
        key, slot.appends = slot.key, load.APPENDS_MAX + 1
        await running.retire_long()
        (former,) = running.former
    assert former.key == key != slot.key
    assert former.last is not None
    assert former.last.events == world.service.sessions[key].events
