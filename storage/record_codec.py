"""Records as bytes. What a script compares is a field of its own; what it does not is msgpack.

The fields of the head are short, and each is at most 64 bytes: Redis then keeps the whole hash in
one small allocation, and a sleeping session is little else.

    a  agent           e  epoch             v  version     k  checkpoint: numbers, inline
    av agent version   n  nonce             s  next_seq    ks checkpoint: digest of the state
    t  status          on owner's node      h  hot_from    ko checkpoint: origin
    r  request that    oi its incarnation   x  cold index  m  manifest
       created it      oa its actor         c  commit id   u  usage
    d  deleted         cm created, ms       um updated, ms   f  fruitless claims
    ol owner's lane
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from torpor import errors, messages
from torpor.storage import digests, records

Argument = str | bytes | int

_encode = msgspec.msgpack.Encoder().encode
_decode_item = msgspec.msgpack.Decoder(records.InboxItem).decode
_decode_event = msgspec.msgpack.Decoder(tuple[str, dict[str, Any], int, int]).decode
_decode_outcome = msgspec.msgpack.Decoder(tuple[records.OutcomeState, int, int, int]).decode
_decode_checkpoint = msgspec.msgpack.Decoder(tuple[int, int, int, bool]).decode
_decode_usage = msgspec.msgpack.Decoder(tuple[int, int, int, int]).decode

_STATUS = {status.value.encode(): status for status in records.Status}


def pairs(flat: Sequence[Any]) -> dict[Any, Any]:
    """Return the flat reply `[field, value, …]` as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def digest(text: str) -> bytes:
    """Return `b3-` and 64 hex digits in half the bytes, any other text as it is."""
    return b"\0" + digests.to_bytes(text) if digests.is_one(text) else text.encode()


def digest_of(value: bytes) -> str:
    """Return the digest of a field."""
    return digests.from_bytes(value[1:]) if value[:1] == b"\0" else value.decode()


# --- head ----------------------------------------------------------------------------------------


def new_head(new: records.NewSession) -> list[Argument]:
    """Return the head's fields and values after creation, without those that are empty."""
    head = new.head()
    created: list[Argument] = ["a", head.agent, "av", head.agent_version, "t", head.status.value]
    created += ["e", head.epoch, "v", head.version, "s", head.next_seq, "h", head.hot_from]
    created += ["cm", head.created_ms, "um", head.updated_ms]
    return created


def created_event(new: records.NewSession) -> messages.Event:
    """Return the first event of a history."""
    return messages.Event(
        seq=1,
        type=messages.SESSION_CREATED,
        data={"agent": new.agent, "agent_version": new.agent_version},
        version=1,
        at_ms=new.created_ms,
    )


def changed_head(commit: records.Commit) -> list[Argument]:
    """Return the head's fields and values that a commit changes, beside those the script counts."""
    changed: list[Argument] = ["um", commit.at_ms]
    if commit.checkpoint is not None:
        ref = commit.checkpoint
        numbers = _encode((ref.version, ref.epoch, ref.state_bytes, ref.inline))
        changed += ["k", numbers, "ks", digest(ref.state), "ko", ref.origin]
    if commit.manifest is not None:
        changed += ["m", digest(commit.manifest)]
    if commit.status is not None:
        changed += ["t", commit.status.value]
    if commit.usage is not None:
        use = commit.usage
        changed += ["u", _encode((use.turns, use.cpu_ms, use.busy_ms, use.rss_bytes))]
    return changed


def changed_state(commit: records.Commit) -> bytes:
    """Return what a commit does to the newest state, as the commit script reads it."""
    if commit.inline_state is not None:
        return b"+" + commit.inline_state
    if commit.checkpoint is not None and not commit.checkpoint.inline:
        return b"-"
    # A commit that goes back to a restore point finds its envelope beside it.
    return b"" if commit.checkpoint is None and commit.manifest is None else b"="


def head(key: records.SessionKey, reply: Sequence[bytes]) -> records.Head:
    """Return the head of an `HGETALL` reply.

    Raises:
        SessionNotFound: the reply is empty.
        SessionDeleted: it is a tombstone.
    """
    fields: Mapping[bytes, bytes] = pairs(reply)
    if not fields:
        raise errors.SessionNotFound(tenant=key.tenant, session=key.session)
    if b"d" in fields:
        raise errors.SessionDeleted(tenant=key.tenant, session=key.session)
    return records.Head(
        key=key,
        agent=fields[b"a"].decode(),
        agent_version=int(fields[b"av"]),
        status=_STATUS[fields[b"t"]],
        epoch=int(fields[b"e"]),
        nonce=fields.get(b"n", b"").decode(),
        owner=_owner(fields),
        left_node="" if b"oi" in fields else fields.get(b"on", b"").decode(),
        version=int(fields[b"v"]),
        next_seq=int(fields[b"s"]),
        hot_from=int(fields[b"h"]),
        cold_index=digest_of(fields.get(b"x", b"")),
        commit_id=fields.get(b"c", b"").decode(),
        checkpoint=_checkpoint(fields),
        manifest=digest_of(fields.get(b"m", b"")),
        usage=_usage(fields),
        fruitless=int(fields.get(b"f", b"0")),
        created_ms=int(fields[b"cm"]),
        updated_ms=int(fields[b"um"]),
    )


#: The head's fields that a restore point keeps, in their order in the list of checkpoints.
_POINT = (b"v", b"s", b"um", b"k", b"ks", b"ko", b"m")


def last_index(points: int) -> int:
    """Return the last index of a list of checkpoints that holds so many, with the newest."""
    return (len(_POINT) + 1) * (points - 1)


def restore_points(head: records.Head, kept: Sequence[bytes]) -> list[records.RestorePoint]:
    """Return what the head names, then what the list of checkpoints holds beside its envelope."""
    points = [
        records.RestorePoint(
            version=head.version,
            next_seq=head.next_seq,
            checkpoint=head.checkpoint,
            manifest=head.manifest,
            at_ms=head.updated_ms,
            inline_state=(kept[0] or None) if kept else None,
        )
    ]
    for start in range(1, len(kept), len(_POINT) + 1):
        fields = dict(zip(_POINT, kept[start:], strict=False))
        points.append(
            records.RestorePoint(
                version=int(fields[b"v"]),
                next_seq=int(fields[b"s"]),
                checkpoint=_checkpoint(fields),
                manifest=digest_of(fields[b"m"]),
                at_ms=int(fields[b"um"]),
                inline_state=kept[start + len(_POINT)] or None,
            )
        )
    return points


def _owner(fields: Mapping[bytes, bytes]) -> records.Owner | None:
    if b"oi" not in fields:
        return None
    return records.Owner(
        node=fields[b"on"].decode(),
        incarnation=fields[b"oi"].decode(),
        actor=fields[b"oa"].decode(),
        lane=fields.get(b"ol", b"").decode(),
    )


def _checkpoint(fields: Mapping[bytes, bytes]) -> records.CheckpointRef | None:
    if b"k" not in fields:
        return None
    version, epoch, state_bytes, inline = _decode_checkpoint(fields[b"k"])
    return records.CheckpointRef(
        version=version,
        epoch=epoch,
        origin=fields[b"ko"].decode(),
        state=digest_of(fields[b"ks"]),
        state_bytes=state_bytes,
        inline=inline,
    )


def _usage(fields: Mapping[bytes, bytes]) -> records.Usage:
    if b"u" not in fields:
        return records.Usage()
    turns, cpu_ms, busy_ms, rss_bytes = _decode_usage(fields[b"u"])
    return records.Usage(turns=turns, cpu_ms=cpu_ms, busy_ms=busy_ms, rss_bytes=rss_bytes)


# --- events, inbox, outcomes ---------------------------------------------------------------------


def event(event: messages.Event) -> bytes:
    """Return a stream entry's value; the seq is its id."""
    return _encode((event.type, event.data, event.version, event.at_ms))


def hot_events(entries: Sequence[Any]) -> list[messages.Event]:
    """Return the events of an `XRANGE` reply."""
    return [_event(int(entry_id.partition(b"-")[0]), fields[1]) for entry_id, fields in entries]


def _event(seq: int, value: bytes) -> messages.Event:
    kind, data, version, at_ms = _decode_event(value)
    return messages.Event(seq=seq, type=kind, data=data, version=version, at_ms=at_ms)


def item(item: records.InboxItem) -> bytes:
    """Return an inbox entry: the request id for the commit script, NUL, the item."""
    return item.message.request_id.encode() + b"\0" + _encode(item)


def items(entries: Sequence[bytes]) -> list[records.InboxItem]:
    """Return the items of an `LRANGE` reply."""
    return [_decode_item(entry.partition(b"\0")[2]) for entry in entries]


def outcome(outcome: records.Outcome) -> bytes:
    """Return a dedup value: the body digest for the enqueue script, NUL, the rest."""
    rest = _encode((outcome.state, outcome.version, outcome.seq, outcome.at_ms))
    return outcome.body_digest.encode() + b"\0" + rest


def outcome_of(value: bytes) -> records.Outcome:
    """Return the outcome of a dedup value."""
    digest, _, rest = value.partition(b"\0")
    state, version, seq, at_ms = _decode_outcome(rest)
    return records.Outcome(
        body_digest=digest.decode(), state=state, version=version, seq=seq, at_ms=at_ms
    )


def outcomes_of(reply: Sequence[bytes]) -> dict[str, records.Outcome]:
    """Return request id → outcome of an `HGETALL` reply."""
    return {name.decode(): outcome_of(value) for name, value in pairs(reply).items()}
