"""What the battery plans, and what its load chooses, by a seed."""

import itertools
import pathlib
import random
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "chaos"))

import msgspec

import fault
import jobs
import load
import schedule
from in_process_service import GATEWAYS, a_fault

EXPENSIVE = fault.Cost.EXPENSIVE
FAULTS = [
    *(a_fault(f"crash at blob.{n}") for n in range(3)),
    *(a_fault(f"crash at commit.{n}") for n in range(8)),
    a_fault("storage full"),
    a_fault("node lost", EXPENSIVE),
    a_fault("node and store parted", EXPENSIVE),
    a_fault("two nodes parted", EXPENSIVE),
    a_fault("gateway killed", EXPENSIVE),
]


def planned(profile: schedule.Profile, seed: str = "7") -> list[schedule.Step]:
    """Return the steps of a profile up to the first that only fills time."""
    wanted = sum(schedule.runs(FAULTS, profile).values())
    taken, count = [], 0
    for step in schedule.steps(FAULTS, profile, seed):
        if count >= wanted:
            return taken
        taken.append(step)
        count += len(step.turns)
    raise AssertionError("the schedule ended")


def test_a_long_run_has_all_that_it_must() -> None:
    """A thousand faults, thirty of each expensive kind, some of every other; all are required."""
    steps = planned(schedule.LONG)
    names = [turn.fault.name for step in steps for turn in step.turns]
    assert len(names) >= 1_000
    for kind in ("node loss", "partition"):
        assert sum(schedule.kind(name) == kind for name in names) >= 30
    assert names.count("gateway killed") == schedule.LONG.fault_runs
    assert all(step.required for step in steps)


def test_expensive_faults_stand_alone_and_cheap_ones_in_groups() -> None:
    """No fault is twice in a group, and none stands with one that is in its way."""
    for step in planned(schedule.LONG):
        names = [turn.fault.name for turn in step.turns]
        if step.turns[0].fault.cost is EXPENSIVE:
            assert len(names) == 1
        assert len(set(names)) == len(names) <= schedule.LONG.together_max
        assert sum(any(word in name for word in schedule.APART) for name in names) <= 1


def test_runs_of_a_fault_are_numbered_from_zero() -> None:
    """A run's number, with the seed, names what the fault chooses."""
    turns = [turn for step in planned(schedule.LONG) for turn in step.turns]
    for each in FAULTS:
        numbers = [turn.run for turn in turns if turn.fault is each]
        assert numbers == list(range(len(numbers)))


def test_a_seed_brings_the_same_plan_and_another_seed_another() -> None:
    """Nothing of the plan depends on anything but faults, profile and seed."""
    plans = [[step.name for step in planned(schedule.SHORT, seed)] for seed in ("7", "7", "8")]
    assert plans[0] == plans[1] != plans[2]


def test_a_short_run_requires_one_of_each_kind_and_fills_its_time() -> None:
    """Each kind comes first, then every fault once, then cheap ones as long as there is time."""
    steps = list(itertools.islice(schedule.steps(FAULTS, schedule.SHORT, "7"), 60))
    required = [step.name for step in steps if step.required]
    assert {schedule.kind(name) for name in required} == {"node loss", "partition"}
    assert [step.required for step in steps[: len(required)]] == [True] * len(required)
    names = {turn.fault.name for step in steps[:13] for turn in step.turns}
    assert names == {each.name for each in FAULTS}
    assert steps[-1].turns[0].fault.cost is fault.Cost.CHEAP


def test_failovers_are_repeated_where_none_may_lose_anything() -> None:
    """They get a world of their own, and may lose nothing there."""
    lossy = msgspec.structs.replace(
        a_fault("failover to a replica that lacks it", EXPENSIVE), loses=True, fails_over=True
    )
    usual, replicated = schedule.stages([*FAULTS, lossy])
    assert (usual.durability, usual.faults) == ("fsync", (*FAULTS, lossy))
    (again,) = replicated.faults
    assert (replicated.durability, again.loses) == ("replicated", False)
    assert again.name == "failover to a replica that lacks it (replicated)"
    assert schedule.kind(again.name) == "lossy failover"
    assert len(schedule.stages(FAULTS)) == 1


def test_named_faults_run_alone_as_often_as_asked() -> None:
    """Replaying one fault runs nothing else, and begins with its first run."""
    steps = list(schedule.named(FAULTS[:2], 2))
    assert [(step.name, step.turns[0].run) for step in steps] == [
        ("crash at blob.0", 0),
        ("crash at blob.1", 0),
        ("crash at blob.0", 1),
        ("crash at blob.1", 1),
    ]


def test_choices_of_the_load_follow_from_the_seed() -> None:
    """Half of them append, and the same seed makes the same choices."""
    pool = [jobs.Slot(tenant, f"{tenant}-{n}") for tenant in load.TENANTS for n in range(3)]

    def chosen(seed: str, deleted: Sequence[jobs.Slot] = ()) -> list[tuple[Any, ...]]:
        rng = random.Random(seed)
        made = [
            jobs.choose(rng, number=n, pool=pool, deleted=deleted, gateways=GATEWAYS)
            for n in range(1_000)
        ]
        assert all(job.other.partition("-")[0] != job.slot.tenant for job in made)
        return [
            (job.verb, job.slot.key, *job.gateways, job.data, job.back)
            for job in made
            if job.verb != "deleted"
        ]

    assert chosen("7") == chosen("7") != chosen("8")
    # How many are deleted by then depends on the machine.
    assert chosen("7", [jobs.Slot("red", "red-9")]) == chosen("7")
    assert sum(job[0] in ("append", "accept") for job in chosen("7")) > 500
