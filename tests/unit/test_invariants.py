"""Each invariant, on histories made by hand: a sound one passes, and one wrong thing is named."""

from typing import Any

import msgspec
import pytest

from torpor import errors, messages
from torpor.testing import invariants, recorded_run, recording, violations, witness
from torpor.testing.recorded_run import KEY, Run
from torpor.testing.recording import Ending, Kind, Reply
from torpor.testing.violations import Invariant


@pytest.fixture
def run() -> Run:
    """A run of three appends and a read, over two activations."""
    return recorded_run.sound()


def test_sound_run_is_sound(run: Run) -> None:
    """Everything that may happen in a good run passes: looks, refusals, what nobody knows."""
    run.told(Kind.GET, reply=Reply(seq=len(run.events), version=run.version))
    run.told(
        Kind.EVENTS,
        reply=Reply(seq=len(run.events), version=run.version),
        seen=[recording.seen(event, token_type=witness.TOKEN) for event in run.events[3:]],
    )
    run.told(Kind.APPEND, "x", ending=Ending.UNKNOWN, reason="OUTCOME_UNKNOWN")
    run.told(Kind.APPEND, "y", ending=Ending.FAIL, reason="MAILBOX_FULL")
    run.turn("z", ending=Ending.UNKNOWN, reply=None)
    run.told(Kind.FOREIGN, ending=Ending.FAIL, reason="SESSION_NOT_FOUND", session="s9")
    assert run.found() == set()


# --- I1 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "commit",
    [
        # Of an epoch that had been followed by another one.
        {"epoch": 1, "nonce": "nonce-1", "pid": 1001, "version": 9},
        # Of a version that was there when its epoch began.
        {"version": 2, "commit_id": "commit-2"},
    ],
)
def test_commit_of_another_epoch(run: Run, commit: dict[str, Any], *, late: bool) -> None:
    """A commit that its epoch cannot have made, in whatever order the records come."""
    if late:
        run.records.reverse()
    assert run.found() == set()
    run.records.insert(
        0 if late else len(run.records), msgspec.structs.replace(run.records[-1], **commit)
    )
    if late:
        run.records[0] = msgspec.structs.replace(
            next(one for one in run.records[1:] if one.version == 5), **commit
        )
    assert run.found() == {"I1"}


@pytest.mark.parametrize("other", [{"nonce": "other"}, {"pid": 7}, {"commit_id": "other"}])
def test_second_holder_of_an_epoch(run: Run, other: dict[str, Any]) -> None:
    """Two nonces or processes of one epoch, or two commits of one version."""
    run.records.append(msgspec.structs.replace(run.records[-1], **other))
    assert run.found() == {"I1"}


def test_version_that_nobody_committed(run: Run) -> None:
    """A version without an event, which nobody tried to commit."""
    run.version += 1
    run.event("app.note")
    assert run.found() == {"I1"}


@pytest.mark.parametrize("wrong", [{"seq": 99}, {"version": 2}])
def test_gap_in_the_history(run: Run, wrong: dict[str, int]) -> None:
    """A number of an event that is left out, or a version that is less than the one before."""
    run.event("app.note")
    run.events[-1] = msgspec.structs.replace(run.events[-1], **wrong)
    assert run.found() == {"I1"}


def test_version_without_events(run: Run) -> None:
    """A commit of bookkeeping alone leaves no event; its process recorded it."""
    run.commit([])
    run.event("app.note")
    assert run.found() == set()


# --- I2 -------------------------------------------------------------------------------------------


def test_lost_token(run: Run) -> None:
    """A token that was acknowledged, its commit recorded, and is not there."""
    del run.events[-5:]
    run.operations.pop()
    assert run.found() == {"I2"}


def test_token_twice(run: Run) -> None:
    """A token that was appended by two requests."""
    run.turn("c")
    assert run.found() == {"I2"}


def test_request_handled_twice(run: Run) -> None:
    """A request with two answers in the history."""
    run.change(len(run.events), request_id="request-2")
    run.operations.pop()
    assert run.found() == {"I2"}


def test_refused_token_that_is_there(run: Run) -> None:
    """A token of a refused request must not appear, unless another delivery was not refused."""
    refused = run.turn("d", ending=Ending.FAIL, reason="INBOX_FULL", reply=None)
    assert run.found() == {"I2"}
    run.told(Kind.APPEND, "d", request_id=refused.request_id, ending=Ending.UNKNOWN)
    assert run.found() == set()


def test_token_that_nobody_sent(run: Run) -> None:
    """A token out of nowhere, or one that was sent to another session of the tenant."""
    run.turn("d")
    sent = run.operations.pop()
    assert run.found() == {"I2"}
    run.operations.append(
        msgspec.structs.replace(sent, session="s2", ending=Ending.UNKNOWN, reply=None)
    )
    assert run.found() == {"I2"}


def test_accepted_token_that_never_comes(run: Run) -> None:
    """What was accepted must be handled, be it with an error that the history tells."""
    run.told(Kind.ACCEPT, "later", request_id="posted")
    assert run.found() == {"I2"}
    run.event(messages.AGENT_ERROR, request_id="posted", reason="MESSAGE_GIVEN_UP")
    assert run.found() == set()


def test_repeated_answer_that_differs(run: Run) -> None:
    """A request that is answered again must get the same answer, from the same event."""
    first = run.operations[1]
    assert first.reply is not None
    again = run.told(
        Kind.APPEND,
        "b",
        request_id=first.request_id,
        reply=msgspec.structs.replace(first.reply, repeated=True),
    )
    assert run.found() == set()
    for wrong in ({"seq": 99}, {"state_n": 9}):
        run.operations[-1] = msgspec.structs.replace(
            again, reply=msgspec.structs.replace(again.reply, **wrong)
        )
        assert run.found() == {"I2"}


def test_agent_that_is_no_witness(run: Run) -> None:
    """Turns of any agent are judged by their answers, whatever these say."""
    request = {"request_id": "own"}
    run.commit([(messages.AGENT_MESSAGE, request | {"data": {"n": 7}})], "own")
    reply = Reply(seq=len(run.events), version=run.version)
    run.told(Kind.READ, **request, reply=reply)
    assert run.found() == set()
    run.commit([(messages.AGENT_MESSAGE, request)], "own")
    assert run.found() == {"I2"}


# --- I3 -------------------------------------------------------------------------------------------


def test_order_against_the_clocks(run: Run) -> None:
    """An append that ended before one began which the history has before it."""
    run.operations[1] = msgspec.structs.replace(run.operations[1], begun_s=90.0, ended_s=99.0)
    assert run.found() == {"I3"}


def test_stale_read(run: Run) -> None:
    """A read that shows less than was acknowledged before it began."""
    newest = run.told(Kind.GET, reply=Reply(seq=len(run.events), version=run.version))
    assert run.found() == set()
    run.operations[-1] = msgspec.structs.replace(newest, reply=Reply(seq=5, version=2))
    assert run.found() == {"I3"}


def test_read_from_the_future(run: Run) -> None:
    """A read that shows what was sent only after it had ended."""
    run.told(Kind.GET, reply=Reply(seq=5, version=2), begun_s=0.1, ended_s=0.2)
    assert run.found() == {"I3"}


def test_unknown_append_that_was_seen(run: Run) -> None:
    """An append whose end nobody knows takes effect at any time, but once seen it is there."""
    run.turn("z", ending=Ending.UNKNOWN, reply=None)
    after = run.told(
        Kind.GET, reply=Reply(seq=len(run.events), version=run.version), begun_s=20.0, ended_s=21.0
    )
    run.told(Kind.GET, reply=Reply(seq=len(run.events) - 3, version=5), begun_s=10.0, ended_s=11.0)
    assert run.found() == set()
    run.operations[-1] = msgspec.structs.replace(
        run.operations[-1], begun_s=after.begun_s + 5, ended_s=after.begun_s + 6
    )
    assert run.found() == {"I3"}


def test_unknown_append_before_what_had_ended(run: Run) -> None:
    """Also an append whose end nobody knows is not before what had ended when it began."""
    run.turn("y", begun_s=50.0, ending=Ending.UNKNOWN, reply=None)
    assert run.found() == set()
    run.turn("z", begun_s=40.0, ended_s=41.0)
    assert run.found() == {"I3"}


# --- I4 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["state", "file"])
def test_part_of_another_version(run: Run, part: str) -> None:
    """State or file that holds less than the history; told once, not with every turn after it."""
    data = run.events[-1].data["data"] | {f"{part}_n": 2, f"{part}_chain": "other"}
    run.change(len(run.events), data=data)
    run.operations.pop()
    history = invariants.History(operations=run.operations, sessions={KEY: run.events})
    assert [str(one.invariant) for one in invariants.check(history)] == ["I4"]


def test_agent_that_read_another_history(run: Run) -> None:
    """A token whose number and digest are not those of its place; told once, too."""
    token = next(one for one in reversed(run.events) if one.type == witness.TOKEN)
    run.change(token.seq, chain="other")
    for event in run.events[token.seq :]:
        if event.type == messages.AGENT_MESSAGE:
            run.change(event.seq, data=event.data["data"] | {"chain": "other"})
    history = invariants.History(operations=run.operations[:2], sessions={KEY: run.events})
    found = [one for one in invariants.check(history) if one.invariant is Invariant.ONE_VERSION]
    assert len(found) == 1


# --- I5 -------------------------------------------------------------------------------------------


def test_answer_before_its_commit(run: Run) -> None:
    """A reply that left before the commit came back, or that no commit was made for."""
    run.records[-1] = msgspec.structs.replace(run.records[-1], at_s=90.0)
    assert run.found() == {"I5"}
    run.records.pop()
    assert run.found() == {"I5"}


def test_answer_that_history_does_not_have(run: Run) -> None:
    """A reply of an event that is another's."""
    reply = run.operations[-1].reply
    assert reply is not None
    run.operations[-1] = msgspec.structs.replace(
        run.operations[-1], reply=msgspec.structs.replace(reply, version=99)
    )
    assert run.found() == {"I5"}


def test_event_that_history_does_not_have(run: Run) -> None:
    """An event that a client saw and that is another one now, or none."""
    seen = [recording.seen(event, token_type=witness.TOKEN) for event in run.events]
    for wrong in ({"type": "app.other"}, {"seq": 99}):
        run.told(
            Kind.EVENTS,
            reply=Reply(seq=len(run.events), version=run.version),
            seen=[msgspec.structs.replace(seen[-1], **wrong)],
        )
        assert run.found() == {"I5"}
        run.operations.pop()
    run.told(Kind.GET, reply=Reply(seq=99, version=99))
    assert run.found() == {"I5"}


def test_event_that_was_left_out(run: Run) -> None:
    """A client that was shown a history with a gap."""
    seen = [recording.seen(event, token_type=witness.TOKEN) for event in run.events]
    newest = Reply(seq=len(run.events), version=run.version)
    run.told(Kind.EVENTS, reply=newest, seen=seen[:3] + seen[4:])
    assert run.found() == {"I1"}


def test_page_that_hides_the_newest_events(run: Run) -> None:
    """Nothing behind an event was seen, though a token behind it had been acknowledged."""
    run.told(Kind.EVENTS, after_seq=len(run.events))
    assert run.found() == set()
    run.told(Kind.EVENTS, after_seq=run.events[1].seq)
    assert run.found() == {"I3"}


def test_append_that_says_nothing_of_what_it_held(run: Run) -> None:
    """A witness's answer without its numbers proves nothing, so it is no answer."""
    operation = run.operations[0]
    assert operation.reply is not None
    run.change(operation.reply.seq, data={})
    assert run.found() == {"I4"}


# --- I6, I7, I8 -----------------------------------------------------------------------------------


def test_healing_takes_too_long() -> None:
    """Healthy within the bound passes; later, or never, does not."""
    bound: dict[str, Any] = {"healed_s": 10.0, "bound_s": 5.0}
    assert invariants.healed("fault", healthy_s=15.0, **bound) == []
    for healthy_s in (15.1, None):
        found = invariants.healed("fault", healthy_s=healthy_s, **bound)
        assert [one.invariant for one in found] == [Invariant.HEALED]


@pytest.mark.parametrize(
    ("ending", "reason", "found"),
    [
        (Ending.OK, "", {"I7"}),
        (Ending.FAIL, "PERMISSION_DENIED", {"I7"}),
        (Ending.FAIL, "SESSION_NOT_FOUND", set()),
        (Ending.FAIL, "TOO_MANY_REQUESTS", set()),
        (Ending.UNKNOWN, "UNAVAILABLE", set()),
    ],
)
def test_foreign_sessions_are_not_there(
    run: Run, ending: Ending, reason: str, found: set[str]
) -> None:
    """Whoever asks for another tenant's session is told that there is none."""
    run.told(Kind.FOREIGN, session="s9", ending=ending, reason=reason)
    assert run.found() == found


def test_token_of_another_tenant(run: Run) -> None:
    """A token that the other tenant sent must not be in the history."""
    run.turn("theirs")
    sent = run.operations.pop()
    run.operations.append(
        msgspec.structs.replace(sent, tenant="blue", ending=Ending.UNKNOWN, reply=None)
    )
    assert run.found() == {"I7"}


def test_deleted_stays_deleted(run: Run) -> None:
    """Nothing that began after a delete was answered may succeed, but another delete."""
    run.told(Kind.DELETE, begun_s=50.0, ended_s=51.0)
    run.told(Kind.DELETE, begun_s=52.0, ended_s=53.0)
    run.told(Kind.GET, begun_s=54.0, ended_s=55.0, ending=Ending.FAIL, reason="SESSION_DELETED")
    assert run.found(sessions={}) == set()
    run.told(Kind.CREATE, begun_s=56.0, ended_s=57.0)
    assert run.found(sessions={}) == {"I8"}


def test_told_to_be_deleted(run: Run) -> None:
    """Once somebody was told that it is deleted, it is, whatever became of the delete itself."""
    run.told(Kind.DELETE, begun_s=50.0, ended_s=51.0, ending=Ending.UNKNOWN)
    reason = errors.SessionDeleted.reason
    run.told(Kind.READ, begun_s=52.0, ended_s=53.0, ending=Ending.FAIL, reason=reason)
    run.told(Kind.GET, begun_s=54.0, ended_s=55.0)
    assert run.found(sessions={}) == {"I8"}


def test_violation_reads_as_a_sentence() -> None:
    """A violation names invariant, session, what is wrong, and the operations that show it."""
    found = violations.Violation(
        invariant=Invariant.ONCE, session=KEY, detail="token a is lost", operations=(1, 2)
    )
    assert str(found) == "I2 red/s1: token a is lost (operations 1, 2)"
