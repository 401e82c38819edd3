"""What a run breaks, and in which order: pure functions of the faults, a profile and a seed."""

import collections
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

import fault
from torpor import deployment

Item = TypeVar("Item")

#: The kinds of expensive faults that a long run shows in numbers, and the words that the names of
#: their faults have: a kind may have several faults, as a partition has several sides.
KINDS: Mapping[str, tuple[str, ...]] = {
    "node loss": ("node lost",),
    "freeze": ("node frozen",),
    "partition": ("parted",),
    "failover": ("failover to a replica that has",),
    "lossy failover": ("failover to a replica that lacks",),
    "redis restart": ("redis killed",),
    "rolling restart": ("rolling restart",),
}
#: Words of cheap faults that would be in each other's way: only one of them stands at a time.
APART = ("storage", "upload", "bit flipped", "crash at blob")


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How long a run is, and what it holds at least."""

    name: str
    #: Of the first stage, the world's start included.
    minutes: float
    #: Whether what is planned runs in any case; else the time decides, but each of `KINDS` runs.
    complete: bool
    #: Operations a second that are offered.
    rate_per_s: float
    #: Of each of `KINDS`, all its faults together.
    kind_runs: int
    #: Of each fault.
    fault_runs: int
    #: Of all faults together; cheap ones make up what is missing.
    runs_min: int
    #: Cheap faults that stand at the same time. A violation is held against all that stood, so
    #: more of them say less; one at a time, an hour is too short for a thousand.
    together_max: int


SHORT = Profile(
    name="short",
    minutes=7.5,
    complete=False,
    rate_per_s=30.0,
    kind_runs=1,
    fault_runs=1,
    runs_min=0,
    together_max=2,
)
LONG = Profile(
    name="long",
    minutes=60.0,
    complete=True,
    rate_per_s=40.0,
    kind_runs=30,
    fault_runs=4,
    runs_min=1_000,
    together_max=5,
)
PROFILES = {profile.name: profile for profile in (SHORT, LONG)}


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What is broken in one world."""

    durability: deployment.Durability
    faults: tuple[fault.Fault, ...]


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one fault."""

    fault: fault.Fault
    #: From 0 for each fault; with the seed and the name it decides what the fault chooses.
    run: int


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What stands at one time: an expensive fault, or some cheap ones."""

    turns: tuple[Turn, ...]
    #: False for what only fills the time that is left.
    required: bool

    @property
    def name(self) -> str:
        """The names of the faults."""
        return " + ".join(turn.fault.name for turn in self.turns)


def stages(faults: Sequence[fault.Fault]) -> list[Stage]:
    """Return all faults at the usual durability, then failovers where none may lose anything."""
    replicated = [
        msgspec.structs.replace(each, name=f"{each.name} (replicated)", loses=False)
        for each in faults
        if each.fails_over
    ]
    return [
        Stage(durability=durability, faults=tuple(some))
        for durability, some in (
            (deployment.Durability.FSYNC, faults),
            (deployment.Durability.REPLICATED, replicated),
        )
        if some
    ]


def kind(name: str) -> str:
    """Return the kind of the fault of this name: one of `KINDS`, or the fault's name itself."""
    found = (each for each, words in KINDS.items() if any(word in name for word in words))
    return next(found, name)


def runs(faults: Sequence[fault.Fault], profile: Profile) -> dict[str, int]:
    """Return how often each fault has to run in a profile."""
    wanted = {}
    for each in faults:
        sharing = sum(kind(other.name) == kind(each.name) for other in faults)
        of_kind = math.ceil(profile.kind_runs / sharing) if kind(each.name) in KINDS else 0
        wanted[each.name] = max(profile.fault_runs, of_kind)
    cheap = [each.name for each in faults if each.cost is fault.Cost.CHEAP]
    missing = profile.runs_min - sum(wanted.values())
    if cheap and missing > 0:
        for name in cheap:
            wanted[name] += math.ceil(missing / len(cheap))
    return wanted


def steps(faults: Sequence[fault.Fault], profile: Profile, seed: str) -> Iterator[Step]:
    """Yield what a profile requires, the rest of its plan, and then cheap faults without end."""
    rng = random.Random(f"{seed}/schedule")
    wanted = runs(faults, profile)
    cheap = [each for each in faults if each.cost is fault.Cost.CHEAP]
    expensive = [each for each in faults if each.cost is fault.Cost.EXPENSIVE]
    planned = _merged(
        list(_groups(_rounds(expensive, wanted, rng), 1)),
        list(_groups(_rounds(cheap, wanted, rng), profile.together_max)),
    )
    needed = range(len(planned)) if profile.complete else _first_of_kinds(planned)
    rest = [group for index, group in enumerate(planned) if index not in needed]
    endless = (rng.sample(cheap, len(cheap)) for _ in itertools.count())
    filling = _groups(endless if cheap else (), profile.together_max)
    numbers: collections.Counter[str] = collections.Counter()
    for index in needed:
        yield _step(planned[index], numbers, required=True)
    for group in itertools.chain(rest, filling):
        yield _step(group, numbers, required=False)


def named(faults: Sequence[fault.Fault], count: int) -> Iterator[Step]:
    """Yield runs of these faults alone, one at a time, each `count` times."""
    for run in range(count):
        for each in faults:
            yield Step(turns=(Turn(fault=each, run=run),), required=True)


def _rounds(
    faults: Sequence[fault.Fault], wanted: Mapping[str, int], rng: random.Random
) -> Iterator[list[fault.Fault]]:
    """Yield rounds, each with every fault at most once and in an order of its own."""
    for done in range(max((wanted[each.name] for each in faults), default=0)):
        left = [each for each in faults if wanted[each.name] > done]
        yield rng.sample(left, len(left))


def _groups(
    rounds: Iterable[Sequence[fault.Fault]], size: int
) -> Iterator[tuple[fault.Fault, ...]]:
    """Yield each round in groups of faults that are not in each other's way."""
    for each in rounds:
        left = list(each)
        while left:
            group: list[fault.Fault] = []
            for candidate in left:
                if len(group) < size and not (_apart(candidate) and any(map(_apart, group))):
                    group.append(candidate)
            left = [other for other in left if other not in group]
            yield tuple(group)


def _apart(each: fault.Fault) -> bool:
    return any(word in each.name for word in APART)


def _first_of_kinds(planned: Sequence[tuple[fault.Fault, ...]]) -> list[int]:
    """Return where each of `KINDS` comes first."""
    first: dict[str, int] = {}
    for index, group in enumerate(planned):
        first.setdefault(kind(group[0].name), index)
    return sorted(index for name, index in first.items() if name in KINDS)


def _merged(*lists: Sequence[Item]) -> list[Item]:
    """Return all items, each list's in its order and spread evenly over the whole."""
    placed = [
        ((index + 0.5) / len(items), item) for items in lists for index, item in enumerate(items)
    ]
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]


def _step(
    group: Iterable[fault.Fault], numbers: collections.Counter[str], *, required: bool
) -> Step:
    turns = []
    for each in group:
        turns.append(Turn(fault=each, run=numbers[each.name]))
        numbers[each.name] += 1
    return Step(turns=tuple(turns), required=required)
