"""Sessions in Redis: one script a write, one round trip a call."""

import base64
import binascii
from typing import Any

from torpor import errors, limits
from torpor.storage import commits, keys, record_codec, records, redis_wire, scripts


class RedisSessions:
    """`torpor.storage.store.Sessions` on Redis."""

    def __init__(self, wire: redis_wire.Wire) -> None:
        self._wire = wire

    async def create(self, new: records.NewSession) -> records.Head:
        """Write the head of a new session, with the event `session.created`, and index it."""
        key = new.key
        # First the index: an entry without a head is skipped, a head without one would be lost.
        await self._wire.write(
            ("ZADD", keys.sessions(key.tenant), "NX", new.created_ms, key.session)
        )
        event = record_codec.event(record_codec.created_event(new))
        answer, head = await scripts.script("create").run(
            self._wire,
            (keys.head(key), keys.hot(key)),
            (new.request_id, event, *record_codec.new_head(new)),
            then=(("HGETALL", keys.head(key)),),
        )
        if answer[0] == b"GONE":
            await self._wire.write(("ZREM", keys.sessions(key.tenant), key.session))
        if answer[0] == b"EXISTS":
            raise errors.SessionExists(tenant=key.tenant, session=key.session)
        return record_codec.head(key, head)

    async def head(self, key: records.SessionKey) -> records.Head:
        """Return the head."""
        (reply,) = await self._wire.read_durable(("HGETALL", keys.head(key)))
        return record_codec.head(key, reply)

    async def page(self, tenant: str, *, after: str, limit: int) -> tuple[list[records.Head], str]:
        """Return up to `limit` heads of a tenant in order of creation, and the next `after`.

        A page may hold fewer, also in the middle: entries without a living head are left out.
        """
        limit = min(limit, limits.PAGE_SESSIONS_MAX)
        entries, more = await self._index(tenant, after, limit)
        if not entries:
            return [], ""
        found = [records.SessionKey(tenant, name.decode()) for name, _ in entries]
        replies = await self._wire.read_durable(*(("HGETALL", keys.head(key)) for key in found))
        heads = [
            record_codec.head(key, reply)
            for key, reply in zip(found, replies, strict=True)
            if reply and b"d" not in reply[::2]
        ]
        return heads, _token(*entries[-1]) if more else ""

    async def _index(
        self, tenant: str, after: str, limit: int
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Return `limit` (session, created_ms) behind the token, and whether there are more."""
        past = _position(after)
        start = past[1] if past else b"-inf"
        index, offset, entries = keys.sessions(tenant), 0, list[tuple[bytes, bytes]]()
        # Sessions of the token's own millisecond are read again and left out.
        while len(entries) <= limit:
            (flat,) = await self._wire.read(
                ("ZRANGEBYSCORE", index, start, "+inf", "WITHSCORES", "LIMIT", offset, limit + 1)
            )
            entries += [
                entry
                for entry in zip(flat[::2], flat[1::2], strict=True)
                if past is None or entry[1] != past[1] or entry[0] > past[0]
            ]
            offset += limit + 1
            if len(flat) < 2 * (limit + 1):
                break
        return entries[:limit], len(entries) > limit

    async def acquire(self, claim: records.Acquire, *, durable: bool = True) -> records.Acquired:
        """Take ownership: epoch + 1 with the claim's nonce, if the head is as observed."""
        key, owner = claim.key, claim.owner
        answer, state, hot, inbox, dedup, head = await scripts.script("acquire").run(
            self._wire,
            (keys.head(key), keys.inbox(key)),
            (
                claim.observed_epoch,
                claim.observed_incarnation,
                claim.nonce,
                owner.node,
                owner.incarnation,
                owner.actor,
                owner.lane,
            ),
            # They are not one transaction. The head comes last: if the claim still stands in it,
            # nobody else wrote anything in between.
            then=(
                ("LINDEX", keys.checkpoints(key), 0),
                ("XRANGE", keys.hot(key), "-", "+"),
                ("LRANGE", keys.inbox(key), 0, -1),
                ("HGETALL", keys.dedup(key)),
                ("HGETALL", keys.head(key)),
            ),
            write=durable,
        )
        _raise(key, answer[0])
        taken = record_codec.head(key, head)
        if (taken.epoch, taken.nonce) != (claim.observed_epoch + 1, claim.nonce):
            raise errors.Fenced(tenant=key.tenant, session=key.session)
        return records.Acquired(
            head=taken,
            inline_state=state or None,
            hot=record_codec.hot_events(hot),
            inbox=record_codec.items(inbox),
            outcomes=record_codec.outcomes_of(dedup),
        )

    async def flush(self) -> None:
        """Return once all that the server has now is durable."""
        await self._wire.flush()

    async def commit(self, commit: records.Commit) -> records.Committed:
        """Make a turn true, all of it or nothing."""
        commits.check(commit)
        key = commit.key
        (answer,) = await scripts.script("commit").run(
            self._wire,
            (
                keys.head(key),
                keys.hot(key),
                keys.inbox(key),
                keys.dedup(key),
                keys.checkpoints(key),
            ),
            _commit_arguments(commit),
            lost=errors.OutcomeUnknown,
        )
        code = answer[0]
        if code == b"OK" or code == b"DUPLICATE":
            return records.Committed(
                version=answer[1], next_seq=answer[2], duplicate=code == b"DUPLICATE"
            )
        _raise(key, code, *answer[1:])
        raise errors.Internal(f"the commit script answered {code!r}")

    async def release(
        self, key: records.SessionKey, *, epoch: int, nonce: str, expected_version: int
    ) -> bool:
        """Give up ownership; False while the inbox holds something, unless paused."""
        (answer,) = await scripts.script("release").run(
            self._wire,
            (keys.head(key), keys.inbox(key), keys.checkpoints(key)),
            (
                epoch,
                nonce,
                expected_version,
                record_codec.last_index(limits.RESTORE_POINTS_ASLEEP_MAX),
            ),
        )
        _raise(key, *answer)
        return bool(answer[0] == b"OK")

    async def restore_points(self, key: records.SessionKey) -> list[records.RestorePoint]:
        """Return the versions that a wake can go back to, newest first, as of one moment."""
        ((head, kept),) = await scripts.script("restore_points").run(
            self._wire, (keys.head(key), keys.checkpoints(key)), (), write=False
        )
        return record_codec.restore_points(record_codec.head(key, head), kept)

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
        (answer,) = await scripts.script("vacate").run(
            self._wire, (keys.head(key),), (epoch, incarnation, int(died), nonce)
        )
        _raise(key, answer[0])
        return bool(answer[0] == b"OK")

    async def seal(self, seal: records.Seal) -> None:
        """Trim the hot tail below `new_hot_from` and name the new cold index, in one step."""
        key = seal.key
        (answer,) = await scripts.script("seal").run(
            self._wire,
            (keys.head(key), keys.hot(key), keys.dedup(key)),
            (
                seal.epoch,
                seal.nonce,
                seal.hot_from,
                seal.new_hot_from,
                record_codec.digest(seal.cold_index),
                *seal.forgotten,
            ),
        )
        _raise(key, *answer)

    async def hot(self, key: records.SessionKey, *, after: int, limit: int) -> records.HotPage:
        """Return hot events with seq > `after`, and where hot begins, as of one moment."""
        (answer,) = await scripts.script("hot").run(
            self._wire, (keys.head(key), keys.hot(key)), (after, limit), write=False
        )
        _raise(key, answer[0])
        _, hot_from, next_seq, cold_index, entries = answer
        if entries:
            # Not always: many watch, and mostly there is nothing new.
            await self._wire.settle()
        return records.HotPage(
            events=record_codec.hot_events(entries),
            hot_from=hot_from,
            next_seq=next_seq,
            cold_index=record_codec.digest_of(cold_index),
        )

    async def enqueue(self, key: records.SessionKey, item: records.InboxItem) -> records.Enqueued:
        """Append to the inbox once per request id."""
        pending = records.Outcome(body_digest=item.body_digest, state=records.OutcomeState.PENDING)
        (answer,) = await scripts.script("enqueue").run(
            self._wire,
            (keys.head(key), keys.inbox(key), keys.dedup(key)),
            (
                item.message.request_id,
                item.body_digest,
                record_codec.item(item),
                record_codec.outcome(pending),
                limits.INBOX_MAX,
                limits.DEDUP_HOT_MAX,
            ),
        )
        if answer[0] == b"REUSED":
            raise errors.RequestIdReused(request_id=item.message.request_id)
        _raise(key, answer[0])
        known = record_codec.outcome_of(answer[2]) if answer[0] == b"KNOWN" else None
        return records.Enqueued(length=answer[1], known=known)

    async def inbox(self, key: records.SessionKey) -> list[records.InboxItem]:
        """Return what waits, oldest first."""
        (entries,) = await self._wire.read(("LRANGE", keys.inbox(key), 0, -1))
        return record_codec.items(entries)

    async def outcome(self, key: records.SessionKey, request_id: str) -> records.Outcome | None:
        """Return what is known of a request id beside the hot tail."""
        (value,) = await self._wire.read_durable(("HGET", keys.dedup(key), request_id))
        return None if value is None else record_codec.outcome_of(value)

    async def delete(self, key: records.SessionKey) -> None:
        """Leave a tombstone with a higher epoch, so that no owner can write again. Idempotent."""
        (answer,) = await scripts.script("delete").run(
            self._wire,
            (
                keys.head(key),
                keys.hot(key),
                keys.inbox(key),
                keys.dedup(key),
                keys.checkpoints(key),
            ),
            (keys.live(key),),
        )
        # After a refusal the index is left alone: a `create` on its way has its entry there.
        _raise(key, answer[0])
        await self._wire.write(("ZREM", keys.sessions(key.tenant), key.session))


def _commit_arguments(commit: records.Commit) -> list[record_codec.Argument]:
    fields = record_codec.changed_head(commit)
    arguments: list[record_codec.Argument] = [
        commit.epoch,
        commit.nonce,
        commit.expected_version,
        commit.commit_id,
        commit.events[0].seq if commit.events else 0,
        limits.DEDUP_HOT_MAX,
        keys.live(commit.key),
        record_codec.changed_state(commit),
        len(fields),
        len(commit.events),
        len(commit.outcomes),
        len(commit.consumed),
        commit.back_to,
        record_codec.last_index(limits.RESTORE_POINTS_MAX),
        *fields,
    ]
    arguments += [record_codec.event(event) for event in commit.events]
    for request_id, outcome in commit.outcomes.items():
        arguments += (request_id, record_codec.outcome(outcome))
    arguments += commit.consumed
    return arguments


_REFUSALS: dict[bytes, tuple[type[errors.TorporError], str | None]] = {
    b"NONE": (errors.SessionNotFound, None),
    b"GONE": (errors.SessionDeleted, None),
    b"FENCED": (errors.Fenced, None),
    b"VERSION": (errors.VersionConflict, "the session is at version {0}"),
    b"SEQ": (errors.VersionConflict, "the session's next seq is {0}"),
    b"INBOX": (errors.VersionConflict, "{0} is not the next item of the inbox"),
    b"POINT": (errors.VersionConflict, "there is no restore point of that version"),
    b"MOVED": (errors.VersionConflict, "hot begins at seq {0}"),
    b"RANGE": (errors.Internal, "the boundary of hot would leave the history"),
    b"FULL": (errors.InboxFull, None),
    b"DEDUP": (errors.DedupFull, None),
}


def _raise(key: records.SessionKey, code: bytes, *details: Any) -> None:
    """Raise what a script's refusal means; return if it is none."""
    if code in _REFUSALS:
        kind, message = _REFUSALS[code]
        words = [value.decode() if isinstance(value, bytes) else value for value in details]
        text = message and message.format(*words)
        raise kind(text, tenant=key.tenant, session=key.session)


def _token(session: bytes, created_ms: bytes) -> str:
    return base64.urlsafe_b64encode(created_ms + b" " + session).decode()


def _position(token: str) -> tuple[bytes, bytes] | None:
    """Return (session, created_ms) of a page token; None for the empty one."""
    if not token:
        return None
    try:
        created_ms, _, session = base64.urlsafe_b64decode(token).partition(b" ")
    except (binascii.Error, ValueError):
        created_ms = session = b""
    if not created_ms.isdigit():
        raise errors.InvalidField("this is not a page token of torpor", field="after")
    return session, created_ms
