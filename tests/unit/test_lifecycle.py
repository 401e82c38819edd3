"""The phases of an activation, and the only ways between them."""

import itertools

import pytest

from torpor.actors.lifecycle import IllegalTransition, Phase, Signal, after


def test_ordinary_life() -> None:
    """Boot, work, be called back while leaving, leave."""
    phase = Phase.BOOTING
    for signal, expected in (
        (Signal.BOOTED, Phase.IDLE),
        (Signal.BEGAN, Phase.WORKING),
        (Signal.COMMITTED, Phase.IDLE),
        (Signal.ASKED_TO_LEAVE, Phase.RELEASING),
        (Signal.CALLED_BACK, Phase.IDLE),
        (Signal.ASKED_TO_LEAVE, Phase.RELEASING),
        (Signal.RELEASED, Phase.ENDED),
    ):
        phase = after(phase, signal)
        assert phase is expected


@pytest.mark.parametrize("signal", [Signal.SPOILT, Signal.FENCED], ids=str)
def test_every_living_phase_can_end(signal: Signal) -> None:
    """Damage and loss of ownership end an activation wherever it is."""
    for phase in Phase:
        if phase is not Phase.ENDED:
            assert after(phase, signal) is Phase.ENDED


def test_nothing_follows_the_end() -> None:
    """No signal leads out of the last phase."""
    for signal in Signal:
        with pytest.raises(IllegalTransition, match="in phase ended"):
            after(Phase.ENDED, signal)


def test_no_turn_begins_while_leaving() -> None:
    """Work begins in idle alone, and only work commits."""
    begins = [phase for phase in Phase if _allows(phase, Signal.BEGAN)]
    commits = [phase for phase in Phase if _allows(phase, Signal.COMMITTED)]
    leaves = [phase for phase in Phase if _allows(phase, Signal.ASKED_TO_LEAVE)]
    assert (begins, commits, leaves) == ([Phase.IDLE], [Phase.WORKING], [Phase.IDLE])


def test_phases_are_told_apart_from_an_empty_board() -> None:
    """No phase is 0, which is what a board holds before anything is written to it."""
    assert all(phase > 0 for phase in Phase)
    assert all(a != b for a, b in itertools.combinations(Phase, 2))


def _allows(phase: Phase, signal: Signal) -> bool:
    try:
        after(phase, signal)
    except IllegalTransition:
        return False
    return True
