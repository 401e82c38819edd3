"""What a fault is: it breaks something in a world, stands for a while, and is healed again.

A new fault is an async generator function under `@fault(name, cost=…)`: what is before its `yield`
breaks, what is after it heals. It gets the world and an rng.

A fault that cannot be brought about raises whatever it likes, and is tried again alone if it stood
in company. One that judges the system raises `Wrong`, which holds in any company.

The battery drives it to its end also when the run is broken off. Everything that is chosen comes
from `rng`, so that a seed brings the same choices again.
"""

import contextlib
import enum
import random
from collections.abc import AsyncIterator, Callable

import msgspec

from world import World

Inject = Callable[[World, random.Random], AsyncIterator[None]]


class Wrong(Exception):
    """A fault's verdict: the system did what it never may."""


class Cost(enum.StrEnum):
    """How much of a run a fault may take."""

    #: A second or two: processes, requests, blobs.
    CHEAP = "cheap"
    #: Many seconds: nodes, partitions, stores.
    EXPENSIVE = "expensive"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault."""

    #: As it stands in the table.
    name: str
    cost: Cost
    inject: Callable[[World, random.Random], contextlib.AbstractAsyncContextManager[None]]
    #: Whether writes that were acknowledged may be lost, if that is reported.
    loses: bool = False
    #: Whether a replica takes the store's place: `replicated` says that nothing is lost then.
    fails_over: bool = False


#: By name, in the order of their definition.
FAULTS: dict[str, Fault] = {}


def fault(
    name: str, *, cost: Cost, loses: bool = False, fails_over: bool = False
) -> Callable[[Inject], Inject]:
    """Put a fault into the battery."""

    def register(inject: Inject) -> Inject:
        if name in FAULTS:
            raise ValueError(f"two faults are called {name!r}")
        manager = contextlib.asynccontextmanager(inject)
        FAULTS[name] = Fault(
            name=name, cost=cost, inject=manager, loses=loses, fails_over=fails_over
        )
        return inject

    return register
