"""Sessions in memory: the rules of the Lua scripts in Python, for unit tests."""

import bisect
from collections.abc import Callable
from typing import Any

import msgspec

from torpor import errors, limits, messages
from torpor.storage import commits, record_codec, records


class _Session:
    """The records of one session; nothing awaits in between, so each call is one moment."""

    def __init__(self, head: records.Head, request_id: str, first: messages.Event) -> None:
        self.head = head
        self.request_id = request_id
        self.hot = [first]
        self.inbox: list[records.InboxItem] = []
        self.outcomes: dict[str, records.Outcome] = {}
        self.state: bytes | None = None
        #: Without the newest.
        self.points: list[records.RestorePoint] = []
        self.deleted = False

    def change(self, **fields: Any) -> None:
        self.head = msgspec.structs.replace(self.head, **fields)

    def restore_points(self) -> list[records.RestorePoint]:
        head = self.head
        newest = records.RestorePoint(
            version=head.version,
            next_seq=head.next_seq,
            checkpoint=head.checkpoint,
            manifest=head.manifest,
            at_ms=head.updated_ms,
            inline_state=self.state,
        )
        return [newest, *self.points]

    def make_way(self, commit: records.Commit) -> None:
        """Keep what the head names as a restore point, or forget it and what a commit skips."""
        points = self.restore_points()
        if commit.back_to:
            while points[0].version != commit.back_to:
                del points[0]
            self.state = points[0].inline_state
        if commit.back_to or self.head.checkpoint is None:
            del points[0]
        self.points = points[: limits.RESTORE_POINTS_MAX - 1]
        in_blob = commit.checkpoint is not None and not commit.checkpoint.inline
        if commit.inline_state is not None or in_blob:
            self.state = commit.inline_state


class MemorySessions:
    """`torpor.storage.store.Sessions` in memory."""

    def __init__(self, nudge: Callable[[records.SessionKey, bytes], None]) -> None:
        self._sessions: dict[records.SessionKey, _Session] = {}
        self._nudge = nudge

    async def create(self, new: records.NewSession) -> records.Head:
        """Write the head of a new session, with the event `session.created`."""
        there = self._sessions.get(new.key)
        if there is None:
            first = record_codec.created_event(new)
            there = self._sessions[new.key] = _Session(new.head(), new.request_id, first)
        found = self._living(new.key)
        if there.request_id != new.request_id:
            raise errors.SessionExists(tenant=new.key.tenant, session=new.key.session)
        return found.head

    async def head(self, key: records.SessionKey) -> records.Head:
        """Return the head."""
        return self._living(key).head

    async def page(self, tenant: str, *, after: str, limit: int) -> tuple[list[records.Head], str]:
        """Return up to `limit` heads of a tenant in order of creation, and the next `after`."""
        limit = min(limit, limits.PAGE_SESSIONS_MAX)
        found = {
            _page_token(session.head): session.head
            for key, session in self._sessions.items()
            if key.tenant == tenant and not session.deleted
        }
        tokens = sorted(found)
        begin = bisect.bisect_right(tokens, after)
        page = tokens[begin : begin + limit]
        more = begin + limit < len(tokens)
        return [found[token] for token in page], page[-1] if more else ""

    async def flush(self) -> None:
        """There is nothing to wait for."""

    async def acquire(self, claim: records.Acquire, *, durable: bool = True) -> records.Acquired:
        """Take ownership: epoch + 1 with the claim's nonce, if the head is as observed."""
        session = self._living(claim.key)
        head = session.head
        incarnation = head.owner.incarnation if head.owner else ""
        epoch = claim.observed_epoch + 1
        again = (head.epoch, head.nonce) == (epoch, claim.nonce)
        observed = (head.epoch, incarnation) == (claim.observed_epoch, claim.observed_incarnation)
        if not again and not observed:
            raise _refusal(errors.Fenced, claim.key)
        fruitless = head.fruitless + (0 if again or not session.inbox else 1)
        session.change(
            epoch=epoch, nonce=claim.nonce, owner=claim.owner, left_node="", fruitless=fruitless
        )
        return records.Acquired(
            head=session.head,
            inline_state=session.state,
            hot=list(session.hot),
            inbox=list(session.inbox),
            outcomes=dict(session.outcomes),
        )

    async def commit(self, commit: records.Commit) -> records.Committed:
        """Make a turn true, all of it or nothing."""
        commits.check(commit)
        session = self._owned(commit.key, commit.epoch, commit.nonce)
        head = session.head
        if head.commit_id == commit.commit_id:
            return records.Committed(version=head.version, next_seq=head.next_seq, duplicate=True)
        self._check(session, commit)
        session.hot += commit.events
        session.outcomes.update(commit.outcomes)
        del session.inbox[: len(commit.consumed)]
        if commit.checkpoint is not None or commit.manifest is not None:
            session.make_way(commit)
        given = {
            name: value
            for name in ("checkpoint", "manifest", "status", "usage")
            if (value := getattr(commit, name)) is not None
        }
        session.change(
            version=head.version + 1,
            next_seq=head.next_seq + len(commit.events),
            commit_id=commit.commit_id,
            updated_ms=commit.at_ms,
            fruitless=0,
            **given,
        )
        self._nudge(commit.key, b"c")
        return records.Committed(version=session.head.version, next_seq=session.head.next_seq)

    def _check(self, session: _Session, commit: records.Commit) -> None:
        head = session.head
        waiting = [item.message.request_id for item in session.inbox[: len(commit.consumed)]]
        fresh = commit.outcomes.keys() - session.outcomes.keys()
        if (
            head.version != commit.expected_version
            or (commit.events and commit.events[0].seq != head.next_seq)
            or waiting != list(commit.consumed)
        ):
            raise _refusal(errors.VersionConflict, commit.key)
        if fresh and len(session.outcomes) + len(fresh) > limits.DEDUP_HOT_MAX:
            raise _refusal(errors.DedupFull, commit.key)
        kept = {point.version for point in session.restore_points()}
        if commit.back_to and commit.back_to not in kept:
            raise _refusal(errors.VersionConflict, commit.key)

    async def release(
        self, key: records.SessionKey, *, epoch: int, nonce: str, expected_version: int
    ) -> bool:
        """Give up ownership; False while the inbox holds something, unless paused."""
        session = self._owned(key, epoch, nonce)
        if session.head.owner is None:
            raise _refusal(errors.Fenced, key)
        if session.head.version != expected_version:
            raise _refusal(errors.VersionConflict, key)
        if session.inbox and session.head.status != records.Status.PAUSED:
            return False
        session.change(nonce="", owner=None, left_node=session.head.owner.node)
        del session.points[limits.RESTORE_POINTS_ASLEEP_MAX - 1 :]
        return True

    async def restore_points(self, key: records.SessionKey) -> list[records.RestorePoint]:
        """Return the versions that a wake can go back to, newest first, as of one moment."""
        return self._living(key).restore_points()

    async def vacate(
        self,
        key: records.SessionKey,
        *,
        epoch: int,
        incarnation: str,
        nonce: str = "",
        died: bool = True,
    ) -> bool:
        """Clear the owner on behalf of a proven dead process; False if it is not the owner."""
        session = self._living(key)
        owner = session.head.owner
        if owner is None or (session.head.epoch, owner.incarnation) != (epoch, incarnation):
            return False
        if nonce and session.head.nonce != nonce:
            return False
        fruitless = max(0, session.head.fruitless - (0 if died else 1))
        session.change(nonce="", owner=None, fruitless=fruitless)
        return True

    async def seal(self, seal: records.Seal) -> None:
        """Trim the hot tail below `new_hot_from` and name the new cold index, in one step."""
        session = self._owned(seal.key, seal.epoch, seal.nonce)
        if not seal.hot_from <= session.head.hot_from <= seal.new_hot_from:
            raise _refusal(errors.VersionConflict, seal.key)
        if seal.new_hot_from > session.head.next_seq:
            raise _refusal(errors.Internal, seal.key)
        session.hot = [event for event in session.hot if event.seq >= seal.new_hot_from]
        for request_id in seal.forgotten:
            session.outcomes.pop(request_id, None)
        session.change(hot_from=seal.new_hot_from, cold_index=seal.cold_index)

    async def hot(self, key: records.SessionKey, *, after: int, limit: int) -> records.HotPage:
        """Return hot events with seq > `after`, and where hot begins, as of one moment."""
        session = self._living(key)
        return records.HotPage(
            events=[event for event in session.hot if event.seq > after][:limit],
            hot_from=session.head.hot_from,
            next_seq=session.head.next_seq,
            cold_index=session.head.cold_index,
        )

    async def enqueue(self, key: records.SessionKey, item: records.InboxItem) -> records.Enqueued:
        """Append to the inbox once per request id."""
        session = self._living(key)
        request_id = item.message.request_id
        known = session.outcomes.get(request_id)
        if known is not None and known.body_digest != item.body_digest:
            raise errors.RequestIdReused(request_id=request_id)
        if known is not None:
            return records.Enqueued(length=len(session.inbox), known=known)
        if len(session.inbox) >= limits.INBOX_MAX:
            raise _refusal(errors.InboxFull, key)
        if len(session.outcomes) >= limits.DEDUP_HOT_MAX:
            raise _refusal(errors.DedupFull, key)
        session.outcomes[request_id] = records.Outcome(
            body_digest=item.body_digest, state=records.OutcomeState.PENDING
        )
        session.inbox.append(item)
        return records.Enqueued(length=len(session.inbox))

    async def inbox(self, key: records.SessionKey) -> list[records.InboxItem]:
        """Return what waits, oldest first."""
        session = self._sessions.get(key)
        return list(session.inbox) if session else []

    async def outcome(self, key: records.SessionKey, request_id: str) -> records.Outcome | None:
        """Return what is known of a request id beside the hot tail."""
        session = self._sessions.get(key)
        return session.outcomes.get(request_id) if session else None

    async def delete(self, key: records.SessionKey) -> None:
        """Leave a tombstone with a higher epoch, so that no owner can write again. Idempotent."""
        session = self._sessions.get(key)
        if session is None:
            raise _refusal(errors.SessionNotFound, key)
        if not session.deleted:
            session.deleted = True
            session.hot, session.inbox, session.outcomes = [], [], {}
            session.state, session.points = None, []
            self._nudge(key, b"c")

    def _living(self, key: records.SessionKey) -> _Session:
        session = self._sessions.get(key)
        if session is None:
            raise _refusal(errors.SessionNotFound, key)
        if session.deleted:
            raise _refusal(errors.SessionDeleted, key)
        return session

    def _owned(self, key: records.SessionKey, epoch: int, nonce: str) -> _Session:
        session = self._living(key)
        if (session.head.epoch, session.head.nonce) != (epoch, nonce):
            raise _refusal(errors.Fenced, key)
        return session


def _page_token(head: records.Head) -> str:
    return f"{head.created_ms:020d} {head.key.session}"


def _refusal(kind: type[errors.TorporError], key: records.SessionKey) -> errors.TorporError:
    return kind(tenant=key.tenant, session=key.session)
