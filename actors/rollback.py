"""What an owner does when the store knows less than it does: it says so in the history, and ends.

A store that fails over to a replica which lacks the last writes goes back in time. Nobody but the
owner could have written, so a version below the one that the owner was told proves it, and so does
another nonce in its epoch; no replication id has to be watched for that. What was acknowledged in
between is gone, and the session goes on from what the store has: the event names the versions and
requests, and what the owner holds in memory is thrown away, so that the two never mix.

If another owns the session by then, it writes that event: it finds what to report in the inbox.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from torpor import errors, ids, messages
from torpor.storage import digests, history, records, store

log = logging.getLogger(__name__)

#: In `session.recovered`: why.
REASON = "store_went_back"
#: The newest of the lost requests are named, so that the event stays small.
REQUESTS_NAMED_MAX = 100
#: Who speaks in an item of the inbox that is a report.
SENDER = "torpor"


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What the store has told an owner."""

    #: With its claim.
    claimed: records.Head
    #: Last.
    head: records.Head
    #: Its own newest event, without the data; None while it has written none.
    newest: messages.Event | None
    outcomes: Mapping[str, records.Outcome]

    def forgotten(self, kept: records.Head) -> records.Forgotten:
        """Return what is lost if `kept` is all that the store still has of it."""
        requests = [rid for rid, outcome in self.outcomes.items() if outcome.version > kept.version]
        return records.Forgotten(
            version=self.head.version,
            kept_version=kept.version,
            first_seq=kept.next_seq,
            last_seq=self.head.next_seq - 1,
            requests=requests[-REQUESTS_NAMED_MAX:],
        )


def went_back(known: records.Head, stored: records.Head) -> bool:
    """Whether the store has forgotten something that it had told the owner.

    Epochs and versions only grow, and an epoch has one nonce, or none once its owner is gone. That
    the store forgot a claim alone is no loss: nobody else was told of it.
    """
    if stored.version == known.version:
        return stored.commit_id != known.commit_id
    another = stored.epoch == known.epoch and stored.nonce not in ("", known.nonce)
    return stored.version < known.version or stored.epoch < known.epoch or another


def demand(head: records.Head, seen: int) -> None:
    """Raise `VersionsLost` if somebody has seen a newer version than the owner of `head` has."""
    if head.version < seen:
        raise errors.VersionsLost(
            f"the session is at version {head.version}, but version {seen} was seen: committed "
            "turns were lost, and the last of those that are there may have their numbers",
            session=head.key.session,
            tenant=head.key.tenant,
            version=head.version,
        )


async def look(
    world: store.Store,
    past: history.History,
    known: Known,
    claim_again: Callable[[records.Head], Awaitable[records.Head]],
    at_ms: int,
) -> errors.VersionsLost | None:
    """Compare the store with what an owner knows; what is lost is reported, and the error returned.

    Args:
        world: the store.
        past: the session's history.
        known: what the owner was told.
        claim_again: claims a session that nobody owns and returns its head.
        at_ms: the owner's wall clock.

    Raises:
        SessionNotFound, SessionDeleted, StoreUnavailable: the store cannot be asked.
    """
    stored = await world.sessions.head(known.head.key)
    if not went_back(known.head, stored) and not await _overwritten(past, known, stored):
        return None
    kept, mine = stored, stored.nonce == known.head.nonce
    if not mine:
        # Its claim is lost: what follows the version that it claimed is by others.
        kept = min(stored, known.claimed, key=lambda head: head.version)
    if stored.owner is None:
        # Whoever asks is told all the same.
        with contextlib.suppress(errors.TorporError):
            stored, mine = await claim_again(stored), True
    lost = known.forgotten(kept)
    return await (
        report(world.sessions, stored, lost, at_ms) if mine else leave(world, stored, lost, at_ms)
    )


async def _overwritten(past: history.History, known: Known, stored: records.Head) -> bool:
    """Whether others own the session whose history does not have what this owner wrote."""
    if known.newest is None or stored.epoch <= known.head.epoch:
        return False
    found = await past.read(after=known.newest.seq - 1, limit=1)
    return [(event.version, event.at_ms) for event in found] != [
        (known.newest.version, known.newest.at_ms)
    ]


async def report(
    sessions: store.Sessions, stored: records.Head, lost: records.Forgotten, at_ms: int
) -> errors.VersionsLost:
    """Write into the history of a session that the caller owns what is lost of it."""
    event = messages.Event(
        seq=stored.next_seq,
        type=messages.SESSION_RECOVERED,
        data=data(lost),
        version=stored.version + 1,
        at_ms=at_ms,
    )
    commit = records.Commit(
        key=stored.key,
        epoch=stored.epoch,
        nonce=stored.nonce,
        expected_version=stored.version,
        commit_id=ids.nonce(),
        events=(event,),
        at_ms=at_ms,
    )
    return await _told(stored, lost, sessions.commit(commit))


async def leave(
    world: store.Store, stored: records.Head, lost: records.Forgotten, at_ms: int
) -> errors.VersionsLost:
    """Leave it to the session's owner to report what is lost, in its inbox."""
    message = messages.Message(text="", request_id=ids.random_id("forgotten"), sender=SENDER)
    item = records.InboxItem(
        message=message,
        body_digest=digests.of(msgspec.json.encode(lost)),
        at_ms=at_ms,
        forgotten=lost,
    )

    async def put() -> None:
        await world.wake.ensure(stored.key)
        await world.sessions.enqueue(stored.key, item)
        # As for any message: a sweep may have taken the first hint away before it was there.
        await world.wake.ensure(stored.key)

    return await _told(stored, lost, put())


async def _told(
    stored: records.Head, lost: records.Forgotten, told: Awaitable[object]
) -> errors.VersionsLost:
    error = errors.VersionsLost(
        f"the store went back to an earlier state and is at version {stored.version}; of what it "
        f"had acknowledged from version {lost.kept_version + 1} to {lost.version}, something is "
        "gone",
        tenant=stored.key.tenant,
        session=stored.key.session,
    )
    log.error("%s: %s", stored.key, error, extra={"action": "versions_lost"})
    try:
        await told
    except errors.TorporError as refused:
        # The caller is told all the same, and so is whoever asks for a version that it has seen.
        log.warning("%s: not reported: %s", stored.key, refused, extra={"action": "not_reported"})
    return error


def as_of(lost: records.Forgotten, claimed: records.Head) -> records.Forgotten:
    """Return what is lost, as the owner that claimed the session afterwards knows it.

    What it found then may have been older than what the former owner had found.
    """
    return msgspec.structs.replace(
        lost,
        kept_version=min(lost.kept_version, claimed.version),
        first_seq=min(lost.first_seq, claimed.next_seq),
    )


def data(lost: records.Forgotten) -> dict[str, Any]:
    """Return the data of the event that tells of it."""
    return {
        "reason": REASON,
        "from_version": lost.version,
        "to_version": lost.kept_version,
        "lost": {
            "versions": _span(lost.kept_version + 1, lost.version),
            "events": _span(lost.first_seq, lost.last_seq),
            "requests": list(lost.requests),
        },
    }


def _span(first: int, last: int) -> list[int]:
    """Return both ends, or nothing."""
    return [first, last] if first <= last else []
