"""The life of one activation: its phases, and the only ways from one to the next."""

import enum


class Phase(enum.IntEnum):
    """Where an activation is. The numbers are written to the slot board."""

    #: Claiming the session, loading state, restoring files.
    BOOTING = 1
    #: Waiting for work.
    IDLE = 2
    #: Running a turn, or another piece of work that ends in a commit.
    WORKING = 3
    #: Giving the session up on purpose.
    RELEASING = 4
    #: The session is given up or lost: nothing may be written any more, the process ends.
    ENDED = 5


class Signal(enum.Enum):
    """What moves an activation from phase to phase."""

    BOOTED = "booted"
    BEGAN = "began"
    COMMITTED = "committed"
    #: A turn failed or its commit did: memory and store differ, so this activation is done.
    SPOILT = "spoilt"
    ASKED_TO_LEAVE = "asked_to_leave"
    #: Something arrived while leaving.
    CALLED_BACK = "called_back"
    RELEASED = "released"
    #: Another activation owns the session.
    FENCED = "fenced"


_TRANSITIONS: dict[tuple[Phase, Signal], Phase] = {
    (Phase.BOOTING, Signal.BOOTED): Phase.IDLE,
    (Phase.BOOTING, Signal.SPOILT): Phase.ENDED,
    (Phase.BOOTING, Signal.FENCED): Phase.ENDED,
    (Phase.IDLE, Signal.BEGAN): Phase.WORKING,
    (Phase.IDLE, Signal.ASKED_TO_LEAVE): Phase.RELEASING,
    (Phase.IDLE, Signal.SPOILT): Phase.ENDED,
    (Phase.IDLE, Signal.FENCED): Phase.ENDED,
    (Phase.WORKING, Signal.COMMITTED): Phase.IDLE,
    (Phase.WORKING, Signal.SPOILT): Phase.ENDED,
    (Phase.WORKING, Signal.FENCED): Phase.ENDED,
    (Phase.RELEASING, Signal.CALLED_BACK): Phase.IDLE,
    (Phase.RELEASING, Signal.RELEASED): Phase.ENDED,
    (Phase.RELEASING, Signal.SPOILT): Phase.ENDED,
    (Phase.RELEASING, Signal.FENCED): Phase.ENDED,
}


class IllegalTransition(RuntimeError):
    """A signal came in a phase that does not know it: a defect, never a user's mistake."""


def after(phase: Phase, signal: Signal) -> Phase:
    """Return the phase that follows.

    Raises:
        IllegalTransition: the table has no such way.
    """
    try:
        return _TRANSITIONS[phase, signal]
    except KeyError:
        raise IllegalTransition(f"{signal.value} in phase {phase.name.lower()}") from None
