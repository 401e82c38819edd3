"""The states of the ownership protocol; the moves are in `owner_moves` and `gateway_moves`.

What the store does in a move is done by the real scripts.

Who is slow, stopped or dead needs no move: its next move comes late, or never, and everything else
goes on meanwhile. So an owner that was taken over, and does not know, is in every run. A takeover
may come at any time: a lease only says when it is useful, never whether it is right.
"""

from collections.abc import Iterator
from typing import NamedTuple

import store_calls as calls
from explorer import Move
from script_store import Answer

NAMES = ("A", "B")


class Scope(NamedTuple):
    """How much may happen in one exploration."""

    #: Requests that a client sends and awaits: each may reach any owner, any number of times.
    direct: tuple[str, ...] = ()
    #: Request of each gateway that accepts one durably, and does not await it.
    accepted: tuple[str, ...] = ()
    #: Claims that succeed; further ones are not tried.
    claims: int = 2
    #: Answers of the store that are lost, and commits that arrive late.
    lost: int = 0
    #: Processes that die and are replaced by another one on their node.
    crashes: int = 0
    #: Owners cleared by somebody else.
    vacated: int = 0
    #: Hot tails sealed.
    seals: int = 0
    #: Whether any gateway sweeps the hint.
    sweeps: bool = False
    #: What somebody decides, in order: "pause", "resume".
    control: tuple[str, ...] = ()
    deletes: bool = False
    #: Times that the store goes back, to one of so many earlier contents.
    rollbacks: int = 0
    window: int = 3


class Owner(NamedTuple):
    """A process that has claimed the session, with what it remembers of it."""

    #: `idle`; `writing` (what it is about to commit depends on nothing that it could still see);
    #: `unsure` (the answer to that was lost); `behind` (the store refused it, and may have gone
    #: back); `before` (it has, to before the claim); `spoilt` (about to give up); `off` (there is
    #: no process).
    phase: str = "off"
    epoch: int = 0
    nonce: str = ""
    version: int = 0
    next_seq: int = 0
    paused: bool = False
    memory: calls.Memory = ()
    known: calls.Known = ()
    #: What is left of the inbox as it was read; None when it is not being emptied.
    queue: tuple[str, ...] | None = None
    #: The hint's score, between the two steps of clearing it.
    score: bytes | None = None
    write: calls.Write | None = None


class State(NamedTuple):
    """Everything that decides what can happen next, and what was promised so far."""

    store: int
    owners: tuple[Owner, ...]
    #: How far each accepting gateway is: see `Gateways`.
    gateways: tuple[int, ...]
    #: How far the decisions are, and the head's (epoch, version, next seq) as looked at.
    control: tuple[int, tuple[int, int, int] | None]
    #: A sweeper's score, between its two steps.
    sweeper: bytes | None = None
    #: A commit that is still on its way to the store.
    flight: calls.Write | None = None
    #: Requests that a client was answered; commits that their owner called void.
    answered: tuple[str, ...] = ()
    void: tuple[str, ...] = ()
    #: Of the scope's bounds, and hints written so far: the clock.
    claims: int = 0
    lost: int = 0
    crashes: int = 0
    vacated: int = 0
    seals: int = 0
    rollbacks: int = 0
    hints: int = 0
    #: Earlier contents, oldest first.
    past: tuple[int, ...] = ()


OFF = Owner()
Moves = Iterator[Move[State]]


def moved(state: State, slot: int, owner: Owner, answer: Answer | None) -> State:
    """Return the state with an owner, and what the store answered it, in place."""
    owners = (*state.owners[:slot], owner, *state.owners[slot + 1 :])
    return state._replace(store=answer.store if answer else state.store, owners=owners)


def answered(state: State, request: str) -> State:
    """Return the state in which a client has the answer to a request; none if it is empty."""
    if not request:
        return state
    return state._replace(answered=tuple(sorted({*state.answered, request})))


def now(state: State) -> int:
    """Return the time, which passes from hint to hint."""
    return 100 * (state.hints + 1)
