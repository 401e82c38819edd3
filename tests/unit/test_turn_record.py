"""Turns as events and answers."""

from torpor import messages
from torpor.actors import turn_record


def test_answer_of_an_error() -> None:
    """An error event is an answer with reason and message."""
    event = messages.Event(
        seq=5,
        type=messages.AGENT_ERROR,
        data={"reason": "TURN_FAILED", "message": "no"},
        version=3,
        at_ms=0,
    )
    answer = turn_record.reply(event, repeated=False)
    assert answer.error is not None
    assert (answer.error.reason, answer.error.message) == ("TURN_FAILED", "no")
    assert (answer.text, answer.seq, answer.version) == ("", 5, 3)
