"""Judging a run while it goes on: each thing once, and nothing before it can be known."""

import json
import pathlib
from typing import Any

import msgspec
import pytest

from torpor import errors, messages
from torpor.testing import invariants, recorded_run, recording, violations, witness_client
from torpor.testing.recorded_run import KEY, Run
from torpor.testing.recording import Ending, Kind, Operation


class Live:
    """A recorder that repeats what a run by hand recorded, and the checker of it."""

    def __init__(self, run: Run, folder: pathlib.Path) -> None:
        self.run = run
        self.now_s = 0.0
        self.recorder = recording.Recorder(monotonic_s=lambda: self.now_s)
        self.checker = invariants.Checker(self.recorder, probes=folder)
        self._records = folder / "1-1.jsonl"
        self._records.write_bytes(
            b"".join(json.dumps(msgspec.to_builtins(one)).encode() + b"\n" for one in run.records)
        )

    def repeat(self, *operations: Operation) -> None:
        """Begin and end operations at their own times."""
        for one in operations:
            self.now_s = one.begun_s
            begun = self.recorder.begin(
                one.kind,
                tenant=one.tenant,
                session=one.session,
                token=one.token,
                request_id=one.request_id,
                min_version=one.min_version,
            )
            self.now_s = one.ended_s or 0.0
            self.recorder.end(begun, one.ending, reply=one.reply, reason=one.reason)

    def verify(
        self, *, begun_s: float = 99.0, upto: int | None = None, final: bool = False
    ) -> list[violations.Violation]:
        """Read on to an event, or to the end."""
        events = self.run.events[self.checker.last_seq(KEY) : upto]
        return self.checker.verify(KEY, events, begun_s=begun_s, final=final)


@pytest.fixture
def live(tmp_path: pathlib.Path) -> Live:
    """A sound run of four turns."""
    return Live(recorded_run.sound(), tmp_path)


def test_run_is_judged_piece_by_piece(live: Live) -> None:
    """After each turn only the new events are asked for, and what is wrong is told once."""
    for operation in live.run.operations:
        live.repeat(operation)
        assert operation.reply is not None
        assert live.verify(upto=operation.reply.seq) == []
        assert live.checker.last_seq(KEY) == operation.reply.seq
    live.repeat(live.run.told(Kind.APPEND, "gone", reply=live.run.operations[-1].reply))
    (found,) = {one.invariant for one in live.verify()} - {violations.Invariant.COMMITTED}
    assert found is violations.Invariant.ONCE
    assert live.verify(final=True) == []


def test_operation_waits_for_a_reading_that_can_know(live: Live) -> None:
    """What ended after the reading began is judged by the next one."""
    live.repeat(*live.run.operations)
    first = live.run.operations[0]
    assert live.verify(begun_s=first.ended_s or 0.0, upto=4) == []
    assert live.verify(final=True) == []


def test_refusal_waits_for_other_deliveries(live: Live) -> None:
    """A refused token that is there may be of a delivery that is still under way."""
    refused = live.run.turn("d", ending=Ending.FAIL, reason="MAILBOX_FULL", reply=None)
    live.repeat(*live.run.operations)
    other = live.recorder.begin(
        Kind.APPEND, tenant="red", session="s1", token=refused.token, request_id=refused.request_id
    )
    assert live.verify() == []
    live.recorder.end(other, Ending.FAIL, reason="MAILBOX_FULL")
    assert [one.invariant for one in live.verify()] == [violations.Invariant.ONCE]


def test_retired_session_stays_deleted(live: Live) -> None:
    """Its history is forgotten, that it was deleted is not; foreign operations are judged, too."""
    live.repeat(*live.run.operations)
    assert live.verify(final=True) == []
    live.repeat(live.run.told(Kind.DELETE, begun_s=100.0, ended_s=101.0))
    assert live.checker.retire(KEY) == []
    assert live.checker.last_seq(KEY) == 0
    refused = live.run.told(
        Kind.READ,
        begun_s=102.0,
        ended_s=103.0,
        ending=Ending.FAIL,
        reason=errors.SessionDeleted.reason,
    )
    live.repeat(refused)
    assert live.checker.late() == []
    live.repeat(msgspec.structs.replace(refused, ending=Ending.OK, reason=""))
    live.repeat(live.run.told(Kind.FOREIGN, begun_s=1.0, ended_s=2.0))
    assert {one.invariant for one in live.checker.late()} == {
        violations.Invariant.TENANTS,
        violations.Invariant.GUARDS,
    }


def test_after_a_fault_that_may_lose_all_is_read_again(live: Live) -> None:
    """What was judged before is judged again: it may be gone, and is missed at the end only."""
    live.repeat(*live.run.operations)
    assert live.verify() == []
    live.run.go_back(1)
    live.checker.may_lose(50.0)
    assert live.checker.last_seq(KEY) == 0
    assert live.verify() == []
    assert [one.invariant for one in live.verify(final=True)] == [violations.Invariant.ONCE]


def test_tombstone_may_be_lost(live: Live) -> None:
    """A session whose delete was lost with other writes is there again."""
    live.repeat(*live.run.operations)
    live.repeat(live.run.told(Kind.DELETE))
    live.checker.may_lose(50.0)
    newest = recording.Reply(seq=len(live.run.events), version=live.run.version)
    live.repeat(live.run.told(Kind.GET, begun_s=60.0, ended_s=61.0, reply=newest))
    assert live.verify(final=True) == []


def test_event_that_changed_between_two_readings(live: Live) -> None:
    """An event that was read, and is another one when it is read again."""
    live.repeat(*live.run.operations)
    assert live.verify() == []
    live.run.events[1] = msgspec.structs.replace(live.run.events[1], type="app.other")
    found = live.checker.verify(KEY, live.run.events, begun_s=99.0)
    assert [one.invariant for one in found] == [violations.Invariant.COMMITTED]


def test_session_that_is_being_made_may_be_lost_too(live: Live) -> None:
    """A loss in a session of which nothing had ended when the store went back is excused."""
    live.recorder.begin(Kind.CREATE, tenant="red", session="s1")
    live.checker = invariants.Checker(live.recorder)
    live.checker.may_lose(50.0)
    live.repeat(*live.run.operations)
    kept, lost = live.run.go_back(1)
    fields = {"from_version": lost, "to_version": kept, "lost": {"events": [1, 2]}}
    live.run.event(messages.SESSION_RECOVERED, **fields)
    assert live.verify(final=True) == []


def _goes_back_unseen(live: Live, **reported: Any) -> None:
    """Let the newest turn be lost, and a client be told of it."""
    kept, lost = live.run.go_back(1)
    told = {"min_version": lost, "reply": recording.Reply(version=kept)} | reported
    live.repeat(
        live.run.told(Kind.READ, ending=Ending.UNKNOWN, reason=errors.VersionsLost.reason, **told)
    )


def test_report_excuses_nothing_that_a_later_fault_loses(live: Live) -> None:
    """A version whose number was lost and came again is missed if it is lost again in silence."""
    live.checker = invariants.Checker(live.recorder)
    live.repeat(*live.run.operations)
    live.checker.may_lose(live.run.now_s + 5)
    _goes_back_unseen(live)
    assert live.verify(begun_s=20.0, final=True) == []
    live.run.now_s += 10
    live.repeat(live.run.turn("again"))
    assert live.verify(begun_s=40.0, final=True) == []
    live.run.go_back(1)
    live.checker.may_lose(50.0)
    assert {one.invariant for one in live.verify(final=True)} == {violations.Invariant.ONCE}


@pytest.mark.parametrize(("kept_s", "found"), [(-1.0, 0), (50.0, 1)])
def test_what_the_later_store_had_may_not_be_lost(live: Live, kept_s: float, found: int) -> None:
    """What was acknowledged before the replica fell behind has to be there, whatever is told."""
    live.checker = invariants.Checker(live.recorder)
    live.repeat(*live.run.operations)
    live.checker.may_lose(50.0, kept_s=kept_s)
    _goes_back_unseen(live)
    assert len(live.verify(final=True)) == found


@pytest.mark.parametrize(("version", "whole", "found"), [(5, 2, 0), (5, 3, 1), (9, 2, 1)])
def test_damage_is_told_and_goes_back_no_further_than_it_must(
    live: Live, version: int, whole: int, found: int
) -> None:
    """The newest version that is whole is taken, and a damage that nothing tells of was used."""
    live.run.event(messages.SESSION_RECOVERED, from_version=5, to_version=2, lost={"state": True})
    live.checker = invariants.Checker(live.recorder)
    live.repeat(*live.run.operations)
    live.checker.may_be_damaged(KEY, version=version, whole_version=whole)
    told = live.verify(final=True)
    assert [one.invariant for one in told] == [violations.Invariant.GUARDS] * found
    assert live.verify(final=True) == []


def test_session_that_was_created_is_found(live: Live) -> None:
    """Who asks for a session after its creation was answered is not told that there is none."""
    live.repeat(*live.run.operations)
    live.repeat(live.run.told(Kind.CREATE, begun_s=1.0, ended_s=2.0))
    refused = {"ending": Ending.FAIL, "reason": errors.SessionNotFound.reason}
    live.repeat(live.run.told(Kind.GET, begun_s=1.5, ended_s=3.0, **refused))
    assert live.verify() == []
    live.repeat(live.run.told(Kind.GET, begun_s=2.5, ended_s=3.0, **refused))
    assert [one.invariant for one in live.verify()] == [violations.Invariant.ONCE]


def test_deleted_session_is_judged_by_its_last_reading(live: Live) -> None:
    """What was acknowledged before a session was read, and deleted, has to be in that reading."""
    live.repeat(*live.run.operations)
    live.repeat(live.run.told(Kind.DELETE, begun_s=100.0, ended_s=101.0))
    live.repeat(live.run.told(Kind.APPEND, "lost", reply=live.run.operations[0].reply))
    last = witness_client.Reading(events=live.run.events, begun_s=99.0)
    found = live.checker.retire(KEY, last)
    assert violations.Invariant.ONCE in {one.invariant for one in found}
