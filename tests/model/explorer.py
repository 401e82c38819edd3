"""Every state that a model can reach, breadth first: what is found is found by a shortest way.

A model is a first state, the moves out of a state, and rules. Nothing here knows what it is about.
"""

import collections
from collections.abc import Hashable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Move(NamedTuple, Generic[S]):
    """One way from a state to the next."""

    #: Who does what, for a reader of a trace.
    label: str
    state: S
    #: What is wrong with the move itself; empty when nothing is.
    complaint: str = ""


class Model(Protocol[S]):
    """What is explored."""

    def first(self) -> S:
        """Return where it begins."""
        ...

    def moves(self, state: S) -> Iterator[Move[S]]:
        """Yield all moves out of a state."""
        ...

    def complaint(self, state: S) -> str:
        """Return which rule a state breaks; empty when it breaks none."""
        ...


class Found(NamedTuple):
    """What an exploration came to."""

    states: int
    transitions: int
    #: Which rule was broken; empty when all of them held everywhere.
    complaint: str
    #: The shortest way there, one line a move.
    trace: list[str]

    def __str__(self) -> str:
        if not self.complaint:
            return f"{self.states} states, {self.transitions} transitions, no rule broken"
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(self.trace, 1))
        return f"{self.complaint}, after {len(self.trace)} moves:\n{steps}"


class TooLarge(Exception):
    """The model has more states than were allowed: make it smaller, or allow more."""


def explore(model: Model[S], *, states_max: int) -> Found:
    """Visit every state once, and stop at the first one that breaks a rule.

    Raises:
        TooLarge: there are more than `states_max` states.
    """
    first = model.first()
    came_from: dict[S, tuple[S, str] | None] = {first: None}
    waiting = collections.deque([first])
    transitions = 0
    while waiting:
        here = waiting.popleft()
        for move in model.moves(here):
            transitions += 1
            known = move.state in came_from
            complaint = move.complaint or ("" if known else model.complaint(move.state))
            if complaint:
                trace = [*_way(came_from, here), move.label]
                return Found(len(came_from), transitions, complaint, trace)
            if not known:
                if len(came_from) >= states_max:
                    raise TooLarge(f"more than {states_max} states")
                came_from[move.state] = (here, move.label)
                waiting.append(move.state)
    return Found(len(came_from), transitions, "", [])


def _way(came_from: dict[S, tuple[S, str] | None], state: S) -> list[str]:
    labels = []
    step = came_from[state]
    while step is not None:
        state, label = step
        labels.append(label)
        step = came_from[state]
    return labels[::-1]
