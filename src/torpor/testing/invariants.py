"""Whether what clients and processes recorded can be: eight invariants, checked as a run goes on.

    checker = Checker(recorder, probes=folder)          # a Recorder, and a folder of torpor.probes
    reading = await client.read_back("s1", after_seq=checker.last_seq("red/s1"))
    violations = checker.verify("red/s1", reading.events, begun_s=reading.begun_s)

The costs are those of what is new. Before a session is deleted, and at the end, when nothing is
under way and inboxes had time to drain, pass `final=True`; after it was deleted, `retire` it.
`check` does all of it for a history that is complete. The invariants are `violations.Invariant`.
"""

import math
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from torpor import errors, messages
from torpor.testing import invariants_ledger, recording, witness_client
from torpor.testing.recording import Ending, Kind, Operation
from torpor.testing.violations import Invariant, Violation


class Checker:
    """Judges a run while it goes on, by its recorder and the records of its processes."""

    def __init__(self, recorder: recording.Recorder, *, probes: pathlib.Path | None = None) -> None:
        self._recorder = recorder
        self._records = recording.ProbeReader(probes) if probes else None
        self._ledgers: dict[str, invariants_ledger.SessionLedger] = {}
        self._taken = 0
        self._found: list[Violation] = []

    def last_seq(self, key: str) -> int:
        """Return which event of a session (`tenant/session`) was the last that was read."""
        return self._ledger(key).last_seq

    def verify(
        self, key: str, events: Iterable[messages.Event], *, begun_s: float, final: bool = False
    ) -> list[Violation]:
        """Judge what is new about a session, and all foreign operations since.

        Args:
            key: `tenant/session`.
            events: those behind `last_seq`, to the end of the history.
            begun_s: when their reading began, on the recorder's clock.
            final: nothing of the session is under way, its inbox had time to drain, and every
                client had one more answer since a fault that may lose something.
        """
        self.collect()
        ledger = self._ledger(key)
        ledger.extend(events, begun_s=begun_s)
        under_way = self._recorder.under_way.values()
        found, self._found = self._found, []
        return found + ledger.verify(
            final=final, open_tokens={operation.token for operation in under_way}
        )

    def collect(self) -> None:
        """Take in what has been recorded; `verify` does so itself."""
        for operation in self._recorder.operations[self._taken :]:
            if operation.kind is Kind.FOREIGN:
                self._found += foreign(operation)
            else:
                self._ledger(operation.key).operation(operation)
        self._taken = len(self._recorder.operations)
        for record in self._records.new() if self._records else ():
            self._ledger(record.session).record(record)

    def may_lose(
        self, at_s: float, *, since_s: float | None = None, kept_s: float = -math.inf
    ) -> None:
        """Excuse what is reported to be lost: the store may have gone back in time.

        Args:
            at_s: on the recorder's clock, when all processes spoke to the later store.
            since_s: when the last of them may have spoken to the former one; `at_s` if None.
            kept_s: what had been acknowledged before is in the later store, too, so that nothing
                excuses its loss.
        """
        self.collect()
        for operation in self._recorder.under_way.values():
            # A session that is just being made may be lost as well.
            self._ledger(operation.key)
        for ledger in self._ledgers.values():
            ledger.may_lose(at_s, at_s if since_s is None else since_s, kept_s)

    def may_be_damaged(self, key: str, *, version: int = 0, whole_version: int = 0) -> None:
        """Note that bytes stored for a session are damaged on purpose.

        Args:
            key: `tenant/session`.
            version: which one cannot be brought back: its history has to tell of that; 0 if it may
                go unnoticed.
            whole_version: the newest one that can, which is the oldest to go back to; 0 if that is
                not known.
        """
        self._ledger(key).may_be_damaged(version, whole_version)

    def retire(self, key: str, last: witness_client.Reading | None = None) -> list[Violation]:
        """Forget a deleted session, but that it is deleted; returns what is wrong since.

        Args:
            key: `tenant/session`.
            last: its history from the start, read before it was deleted. What ended after that,
                or without it since `verify`, is never judged.
        """
        self.collect()
        if last is not None:
            self._ledger(key).extend(last.events, begun_s=last.begun_s)
        found = self._ledger(key).verify()
        self._ledger(key).forget()
        return found

    def late(self) -> list[Violation]:
        """Return what is wrong with operations since the last judgement, without any reading.

        Those of other tenants, and those on sessions that are deleted: for the end of a run.
        """
        self.collect()
        found, self._found = self._found, []
        return found + [one for ledger in self._ledgers.values() for one in ledger.verify()]

    def _ledger(self, key: str) -> invariants_ledger.SessionLedger:
        if key not in self._ledgers:
            self._ledgers[key] = invariants_ledger.SessionLedger(
                key, self._recorder.sent, probed=self._records is not None
            )
        return self._ledgers[key]


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was recorded of a run that is over."""

    operations: Sequence[Operation]
    #: `tenant/session` → all its events, read when all was over; deleted sessions are left out.
    sessions: Mapping[str, Sequence[messages.Event]]
    #: What processes recorded; None if they did not.
    records: Sequence[recording.Record] | None = None
    #: `tenant/session` → when its store may have gone back, as `Checker.may_lose` says.
    lossy: Mapping[str, float] = {}
    #: Sessions whose stored bytes were damaged on purpose.
    damaged: Collection[str] = ()


def check(history: History) -> list[Violation]:
    """Return what is wrong with a run that is over."""
    sent: dict[str, recording.Sent] = {}
    for operation in sorted(history.operations, key=lambda one: one.begun_s):
        if operation.token:
            first = recording.Sent(key=operation.key, begun_s=operation.begun_s)
            sent.setdefault(operation.token, first)
    keys = {*history.sessions, *(operation.key for operation in history.operations)}
    probed = history.records is not None
    ledgers = {
        key: invariants_ledger.SessionLedger(key, sent, probed=probed) for key in sorted(keys)
    }
    for key, at_s in history.lossy.items():
        ledgers[key].may_lose(at_s, at_s, -math.inf)
    for key in history.damaged:
        ledgers[key].may_be_damaged(0, 0)
    for record in history.records or ():
        if record.session in ledgers:
            ledgers[record.session].record(record)
    found: list[Violation] = []
    for operation in sorted(history.operations, key=_end_s):
        if operation.kind is Kind.FOREIGN:
            found += foreign(operation)
        elif operation.ended_s is not None:
            ledgers[operation.key].operation(operation)
    for key, ledger in ledgers.items():
        if key in history.sessions:
            ledger.extend(history.sessions[key], begun_s=math.inf)
        found += ledger.verify(final=key in history.sessions)
    return found


def foreign(operation: Operation) -> list[Violation]:
    """Return what is wrong with an operation on another tenant's session: I7."""
    if operation.ending is Ending.OK:
        what = "was let through"
    elif operation.ending is Ending.FAIL and not _refused(operation.reason):
        what = f"was refused with {operation.reason}, which says that there is something"
    else:
        return []
    return [
        Violation(
            invariant=Invariant.TENANTS,
            session=operation.key,
            detail=f"an operation on another tenant's session {what}",
            operations=(operation.id,),
        )
    ]


def healed(
    fault: str, *, healed_s: float, healthy_s: float | None, bound_s: float
) -> list[Violation]:
    """Return what is wrong with the time from a fault's end until all was healthy again: I6.

    Args:
        fault: its name.
        healed_s: when nothing was broken any more.
        healthy_s: when all worked again; None if it never did.
        bound_s: how long that may take.
    """
    if healthy_s is not None and healthy_s - healed_s <= bound_s:
        return []
    took = "never" if healthy_s is None else f"after {healthy_s - healed_s:.1f} s"
    detail = f"healthy again {took} after {fault!r}, {bound_s:g} s are allowed"
    return [Violation(invariant=Invariant.HEALED, session="", detail=detail)]


def _refused(reason: str) -> bool:
    """Whether a refusal says nothing about the session."""
    refusal = errors.by_reason(reason)
    return issubclass(refusal, errors.SessionNotFound | errors.ResourceExhausted)


def _end_s(operation: Operation) -> float:
    return math.inf if operation.ended_s is None else operation.ended_s
