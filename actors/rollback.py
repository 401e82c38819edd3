"""What an owner does when the store knows less than it does: it says so in the history, and ends.

A store that fails over to a replica which lacks the last writes goes back in time. Nobody but the
owner could have written, so a version below the one that the owner was told proves it, and so does
another nonce in its epoch; no replication id has to be watched for that. What was acknowledged in
between is gone, and the session goes on from what the store has: the event names the versions and
requests, and what the owner holds in memory is thrown away, so that the two never mix.

If its claim is gone, too, the session's next owner writes that event: it finds what to report in
the inbox.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from torpor import errors, messages
from torpor.storage import history, records

#: In `session.recovered`: why.
REASON = "store_went_back"
#: The newest of the lost requests are named, so that the event stays small.
REQUESTS_NAMED_MAX = 100


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What the store has told an owner."""

    #: With its claim.
    claimed: records.Head
    #: Last.
    head: records.Head
    #: The newest event, without its data; None if it has neither written nor found one.
    newest: messages.Event | None
    outcomes: Mapping[str, records.Outcome]

    def forgotten(self, kept_version: int, next_seq: int) -> records.Forgotten:
        """Return what is lost if the store has no more of it than this version."""
        requests = [rid for rid, outcome in self.outcomes.items() if outcome.version > kept_version]
        return records.Forgotten(
            version=self.head.version,
            kept_version=kept_version,
            first_seq=next_seq,
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


async def find(
    past: history.History, known: Known, stored: records.Head, *, mine: bool
) -> records.Forgotten | None:
    """Return what is lost of what an owner was told; None if nothing is.

    Args:
        past: the session's history.
        known: what the owner was told.
        stored: the head as it is in the store.
        mine: whether that owner holds the session there.

    Raises:
        SessionNotFound, SessionDeleted, StoreUnavailable, StorageUnavailable, DataLoss: the history
            cannot be read.
    """
    if mine:
        # Nobody else has written.
        if not went_back(known.head, stored):
            return None
        return known.forgotten(stored.version, stored.next_seq)
    if not went_back(known.head, stored) and (
        known.newest is None or await _stands(past, known.newest)
    ):
        return None
    # What follows is by others, in the numbers of what is lost.
    return known.forgotten(*min((stored.version, stored.next_seq), await _kept(past, known)))


async def _kept(past: history.History, known: Known) -> tuple[int, int]:
    """Return the version of the owner's newest turn that still stands, or of its claim.

    And the seq after it. What the owner wrote stands up to some turn, so it is halved.
    """
    turns = sorted(
        (each for each in known.outcomes.values() if each.version > known.claimed.version),
        key=lambda each: each.version,
    )
    low, high = 0, len(turns)
    while low < high:
        middle = (low + high) // 2
        if await _stands(past, turns[middle]):
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return known.claimed.version, known.claimed.next_seq
    return turns[low - 1].version, turns[low - 1].seq + 1


async def _stands(past: history.History, written: messages.Event | records.Outcome) -> bool:
    """Whether the history has an event as its owner knows it: another's has another time."""
    found = await past.read(after=written.seq - 1, limit=1)
    return [(event.version, event.at_ms) for event in found] == [(written.version, written.at_ms)]


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
