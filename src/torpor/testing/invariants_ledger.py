"""One session's operations against its history, again and again, each of them judged once."""

import collections
import math
from collections.abc import Collection, Iterable, Mapping

from torpor import errors, messages, probes
from torpor.testing import (
    invariants_claims,
    invariants_order,
    invariants_story,
    recording,
    witness,
)
from torpor.testing.recording import Ending, Kind, Operation
from torpor.testing.violations import Invariant, Loss, Violation

#: Operations that are answered by a turn, whose reply is an event.
TURNS = (Kind.APPEND, Kind.READ)
#: Operations that are told the session's newest event and version.
LOOKS = (Kind.GET, Kind.EVENTS, Kind.EVICT, Kind.PAUSE, Kind.RESUME)
#: What a client is told when the store went back to before what it had seen.
LOST = (errors.HistoryGap.reason, errors.VersionsLost.reason)


class SessionLedger:
    """What is known of one session, and what is wrong with it.

    Feed it operations and records as they come, then `extend` it by the events behind `last_seq`,
    and `verify`. The costs are those of what is new.
    """

    def __init__(self, key: str, sent: Mapping[str, recording.Sent], *, probed: bool) -> None:
        """Begin.

        Args:
            key: `tenant/session`.
            sent: all tokens that were sent to any session.
            probed: whether the deployment records its claims and commits.
        """
        self.key = key
        self._sent = sent
        self._probed = probed
        self._found: list[Violation] = []
        self._story = invariants_story.Story(key, sent, self._say)
        self._order = invariants_order.Order()
        self._claims = invariants_claims.Claims(self._say)
        self._claims_before = self._claims
        #: Operations that ended after the newest reading began.
        self._waiting: collections.deque[Operation] = collections.deque()
        self._read_s = -math.inf
        #: Messages that were accepted and whose turn is not in the history yet.
        self._accepted: dict[str, Operation] = {}
        #: Tokens of operations that failed; of those that did not.
        self._failed: dict[str, int] = {}
        self._possible: set[str] = set()
        #: Request id → when its commit was known to its process.
        self._commits_s: dict[str, float] = {}
        #: Versions that somebody tried to commit; commit id → when.
        self._tried: set[int] = set()
        self._tried_s: dict[str, float] = {}
        self._gap_free_to = 0
        self._created_s = self._deleted_s = math.inf
        # Of faults that may lose something; what ended before `kept` they must not.
        self._lossy_s = self._lossy_since_s = self._kept_s = -math.inf
        #: Whether what the last of them lost has been judged.
        self._settled = True
        self._damaged = False
        #: The newest version that is whole beside each damage; damaged versions yet to be told of.
        self._whole: list[int] = []
        self._untold: set[int] = set()
        self._losses: list[Loss] = []
        #: Reports in the history that name what an earlier fault lost.
        self._former: set[Loss] = set()
        #: Told to clients, and not in the history that was read since.
        self._missing: dict[int, tuple[Operation, str]] = {}
        #: All that clients were told, to be judged again if the history goes back.
        self._told: list[Operation] = []

    @property
    def last_seq(self) -> int:
        """Of the newest event that was read: read on behind it."""
        return self._story.last_seq

    def operation(self, operation: Operation) -> None:
        """Take in an operation that ended, in the order of the ends."""
        ok = operation.ending is Ending.OK
        deleted = ok and operation.kind is Kind.DELETE
        if deleted or operation.reason == errors.SessionDeleted.reason:
            ended_s = operation.ended_s or 0.0
            # Otherwise the tombstone may be among what was lost.
            if not self._may_be_lost(ended_s):
                self._deleted_s = min(self._deleted_s, ended_s)
        elif ok and operation.begun_s > self._deleted_s:
            self._say(Invariant.GUARDS, f"{operation.kind} after it was deleted", operation.id)
        else:
            self._judge_presence(operation)
            self._waiting.append(operation)

    def _judge_presence(self, operation: Operation) -> None:
        ended_s = operation.ended_s or 0.0
        if operation.kind is Kind.CREATE and operation.ending is Ending.OK:
            if not self._may_be_lost(ended_s):
                self._created_s = min(self._created_s, ended_s)
        elif (
            operation.reason == errors.SessionNotFound.reason
            and operation.begun_s > self._created_s
        ):
            self._say(
                Invariant.ONCE,
                f"{operation.kind} found no session after its creation",
                operation.id,
            )

    def record(self, record: recording.Record) -> None:
        """Take in a claim or a commit that a process recorded."""
        sent_s = self._tried_s.get(record.commit_id, record.at_s)
        match record.point:
            case probes.Point.COMMIT_BEFORE:
                self._tried_s[record.commit_id] = record.at_s
                self._tried.add(record.version)
                return
            case probes.Point.COMMIT_AFTER:
                for request_id in record.requests:
                    self._commits_s.setdefault(request_id, record.at_s)
        if record.at_s < self._lossy_since_s:
            self._claims_before.add(record)
        elif sent_s >= self._lossy_s:
            # What was sent to the one store and answered by the other is of neither.
            self._claims.add(record)

    def extend(self, events: Iterable[messages.Event], *, begun_s: float) -> None:
        """Take in the events behind `last_seq`, whose reading began at `begun_s`."""
        if begun_s < self._lossy_s:
            # Of the store that is gone.
            return
        self._read_s = begun_s
        for token in self._story.extend(events):
            sent = self._sent.get(token)
            if sent is not None:
                # Its operation may have no end that anybody knows, but it has a beginning.
                position = self._story.positions[token]
                other = self._order.append(position, sent.begun_s, math.inf, 0)
                self._judge_order(other, f"token {token}, number {position},")

    def may_lose(self, at_s: float, since_s: float, kept_s: float) -> None:
        """From `at_s` on the store may be one that lacks its last writes: read from the start.

        Before `since_s` it was the old one; what was recorded between the two is of neither. What
        had ended before `kept_s` both have.
        """
        # What is not judged yet may have been lost by the fault before this one.
        self._kept_s = kept_s if self._settled else min(kept_s, self._kept_s)
        self._settled = False
        self._lossy_s, self._lossy_since_s = at_s, since_s
        if self._may_be_lost(self._created_s):
            self._created_s = math.inf
        # The tale of a damage may be lost like everything else.
        self._untold.clear()
        self._read_s = -math.inf
        self._waiting.extendleft(reversed(self._told))
        self._claims_before = self._claims
        self.forget()

    def _may_be_lost(self, ended_s: float) -> bool:
        """Whether what was acknowledged then may be gone, if that is reported."""
        return self._kept_s <= ended_s <= self._lossy_s

    def forget(self) -> None:
        """Let go of everything that was read, and of what was judged by it."""
        self._deleted_s = math.inf if self._may_be_lost(self._deleted_s) else self._deleted_s
        self._told.clear()
        self._story = invariants_story.Story(self.key, self._sent, self._say)
        self._tell_story()
        self._order = invariants_order.Order()
        self._claims = invariants_claims.Claims(self._say)
        self._gap_free_to = 0

    def may_be_damaged(self, version: int, whole_version: int) -> None:
        """From now on what is stored for the session may be damaged; 0 for what is not known."""
        self._damaged = True
        self._whole.append(whole_version)
        self._untold.update({version} - {0})
        self._tell_story()

    def _tell_story(self) -> None:
        self._story.may_lose = self._damaged or self._lossy_s > -math.inf
        self._story.mixed = Invariant.GUARDS if self._damaged else Invariant.ONE_VERSION
        self._story.whole = self._whole

    def verify(self, *, final: bool = False, open_tokens: Collection[str] = ()) -> list[Violation]:
        """Judge what is new, and return what is wrong.

        Args:
            final: nothing is under way any more, and all that waits in the inbox had time enough.
            open_tokens: of operations that have not ended.
        """
        while self._waiting and (self._waiting[0].ended_s or 0.0) < self._read_s:
            self._judge(self._waiting.popleft())
        self._judge_failed({*open_tokens, *(waiting.token for waiting in self._waiting)})
        self._accepted = {
            request_id: operation
            for request_id, operation in self._accepted.items()
            if request_id not in self._story.answers
        }
        if self._probed:
            self._judge_versions()
        if final:
            self._judge_accepted()
            self._judge_missing()
            self._judge_untold()
        found, self._found = self._found, []
        return found

    # --- operations -------------------------------------------------------------------------------

    def _judge(self, operation: Operation) -> None:
        if operation.token and operation.ending is Ending.FAIL:
            self._failed[operation.token] = operation.id
        elif operation.token:
            self._possible.add(operation.token)
        if operation.reason in LOST and operation.reply is not None:
            # Nobody knows since when: of the versions that are there some may be others' by now.
            self._losses.append(Loss(kept_version=0, lost_version=operation.min_version))
        if operation.ending is not Ending.OK:
            return
        if operation.kind is Kind.ACCEPT:
            self._accepted[operation.request_id] = operation
        elif operation.kind in TURNS:
            self._told.append(operation)
            self._judge_turn(operation)
        elif operation.kind in LOOKS and operation.reply is not None:
            self._told.append(operation)
            self._judge_look(operation, operation.reply)
        elif operation.kind is Kind.EVENTS and operation.begun_s > self._lossy_s:
            self._judge_nothing(operation)

    def _judge_turn(self, operation: Operation) -> None:
        reply = operation.reply
        if reply is None:
            raise ValueError(f"operation {operation.id} is ok and has no reply")
        commit_s = self._commits_s.get(operation.request_id, math.inf)
        if self._probed and not reply.repeated and commit_s > (operation.ended_s or 0.0):
            self._say(
                Invariant.COMMITTED,
                f"{operation.kind} was answered before its commit",
                operation.id,
            )
        if operation.kind is Kind.APPEND and operation.token not in self._story.positions:
            self._miss(
                operation, Invariant.ONCE, f"token {operation.token} was acknowledged and lost"
            )
            return
        answers = self._story.answers.get(operation.request_id, [])
        answer = next((one for one in answers if one.seq == reply.seq), None)
        if answer is None or answer.version != reply.version:
            held = " and ".join(f"event {one.seq} of version {one.version}" for one in answers)
            self._miss(
                operation,
                Invariant.ONCE if reply.repeated and answers else Invariant.COMMITTED,
                f"{operation.kind} was answered by event {reply.seq} of version {reply.version}, "
                f"the history holds {held or 'nothing'}",
            )
            return
        # What a witness holds is judged in the history, so its reply has only to be the same.
        told = answer.data or {}
        if operation.kind is Kind.APPEND and not told.keys() >= witness.PARTS:
            self._say(Invariant.ONE_VERSION, "its reply does not say what it held", operation.id)
        if told.keys() >= witness.PARTS and any(
            getattr(reply, it) != told[it] for it in witness.PARTS
        ):
            self._say(Invariant.ONCE, "its reply differs from the history's", operation.id)
        self._place(operation, reply)

    def _judge_look(self, operation: Operation, reply: recording.Reply) -> None:
        events = self._story.events
        for before, seen in zip((None, *operation.seen), operation.seen, strict=False):
            if before is not None and seen.seq != before.seq + 1:
                self._say(
                    Invariant.FENCE, f"event {before.seq} came before {seen.seq}", operation.id
                )
            if seen.seq > len(events) or events[seen.seq - 1] != seen:
                self._miss(operation, Invariant.COMMITTED, f"event {seen.seq} is not what was seen")
                return
        if reply.seq > len(events):
            self._miss(
                operation, Invariant.COMMITTED, f"{operation.kind} told of event {reply.seq}"
            )
        elif operation.kind in (Kind.GET, Kind.EVENTS) and operation.begun_s > self._lossy_s:
            # Before, its event was perhaps another one of the same number.
            self._place(operation, reply)

    def _judge_nothing(self, operation: Operation) -> None:
        """Judge a look that found nothing behind an event: no append behind it had ended."""
        position = self._story.count(operation.after_seq)
        other = self._order.read(position, operation.begun_s, math.inf, operation.id)
        self._judge_order(other, f"nothing behind event {operation.after_seq}", operation.id)

    def _place(self, operation: Operation, reply: recording.Reply) -> None:
        ended_s = math.inf if operation.ended_s is None else operation.ended_s
        if operation.kind is Kind.APPEND:
            # Delivered several times, it may have happened since the first of them.
            begun_s = self._sent[operation.token].begun_s
            position = self._story.positions[operation.token]
            other = self._order.append(position, begun_s, ended_s, operation.id)
        else:
            position = self._story.count(reply.seq)
            other = self._order.read(position, operation.begun_s, ended_s, operation.id)
        self._judge_order(other, f"{operation.kind} at {position} tokens", operation.id)

    def _judge_order(self, other: int | None, what: str, *operations: int) -> None:
        if other is not None:
            self._say(
                Invariant.ORDER,
                f"{what} is on the wrong side of an operation that had ended before it began, or "
                "began after it had ended",
                *operations,
                *([other] if other else []),
            )

    # --- what only the whole shows ----------------------------------------------------------------

    def _judge_failed(self, still_open: set[str]) -> None:
        present = self._failed.keys() & self._story.positions.keys()
        for token in present - still_open:
            operation = self._failed.pop(token)
            if token not in self._possible:
                self._say(Invariant.ONCE, f"token {token} was refused and is there", operation)

    def _judge_versions(self) -> None:
        """Versions without events are known by those who tried to commit them."""
        while self._gap_free_to < self._story.version:
            version = self._gap_free_to + 1
            if version not in self._story.versions and version not in self._tried:
                self._say(Invariant.FENCE, f"version {version} is missing")
            self._gap_free_to = version

    def _judge_accepted(self) -> None:
        for operation in self._accepted.values():
            # No version names what waits in an inbox, so no report of a loss can name it.
            if not self._may_be_lost(operation.ended_s or 0.0):
                self._say(
                    Invariant.ONCE,
                    f"token {operation.token} was accepted and never handled",
                    operation.id,
                )
        self._accepted.clear()

    def _judge_untold(self) -> None:
        for version in self._untold:
            if not any(told >= version for told in self._story.damaged):
                self._say(
                    Invariant.GUARDS, f"version {version} was damaged, and nothing tells of it"
                )
        self._untold.clear()

    def _miss(self, operation: Operation, invariant: Invariant, detail: str) -> None:
        if self._lossy_s > -math.inf:
            self._missing[operation.id] = (operation, detail)
        else:
            self._say(invariant, detail, operation.id)

    def _judge_missing(self) -> None:
        """Judge last what was lost: the report may come with the last operation."""
        losses = {*self._losses, *self._story.losses} - self._former
        for operation, detail in self._missing.values():
            version = operation.reply.version if operation.reply else 0
            # What only the later store was told is not what the former one lost.
            if operation.begun_s > self._lossy_s or not self._may_be_lost(operation.ended_s or 0.0):
                self._say(Invariant.ONCE, f"{detail}, and nothing may be", operation.id)
            elif not any(loss.names(version) for loss in losses):
                self._say(Invariant.ONCE, f"{detail}, and no report names it", operation.id)
        # The numbers of lost versions come again: no report excuses what a later fault loses.
        self._told = [operation for operation in self._told if operation.id not in self._missing]
        self._former.update(self._story.losses)
        self._losses.clear()
        self._missing.clear()
        self._settled = True

    def _say(self, invariant: Invariant, detail: str, *operations: int) -> None:
        self._found.append(
            Violation(invariant=invariant, session=self.key, detail=detail, operations=operations)
        )
