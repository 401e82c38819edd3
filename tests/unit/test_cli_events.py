"""Events as people read them."""

from typing import Any

import pytest

from torpor import messages
from torpor.cli import events

FAILED = {"reason": "TURN_FAILED", "message": "NameError: x", "traceback": "Traceback:\nline 1\n"}


@pytest.mark.parametrize(
    ("type_", "data", "said"),
    [
        ("session.created", {"agent": "notebook", "agent_version": 2}, "notebook@2"),
        ("session.woken", {"node": "node-1", "epoch": 3}, "on node-1, epoch 3"),
        ("agent.error", FAILED, "TURN_FAILED: NameError: x\n  Traceback:\n  line 1"),
        ("agent.error", FAILED | {"traceback": ""}, "TURN_FAILED: NameError: x"),
        ("user.message", {"text": "6 * 7", "sender": "user"}, "6 * 7"),
        ("my.own", {"n": 1}, '{"n":1}'),
        ("session.woken", {}, "{}"),
    ],
)
def test_an_event_is_told(type_: str, data: dict[str, Any], said: str) -> None:
    """Torpor's own events are told in a few words, all others by their text or as JSON."""
    event = messages.Event(seq=1, type=type_, data=data, version=1, at_ms=0)
    assert events.body(event) == said


def test_a_long_text_is_shortened() -> None:
    """What is left out is counted, and where to find it is told."""
    assert events.shortened("x" * events.SHOWN_MAX) == "x" * events.SHOWN_MAX
    told = events.shortened("x" * (events.SHOWN_MAX + 5))
    assert told == "x" * events.SHOWN_MAX + "… (5 more characters; --json has all)"
