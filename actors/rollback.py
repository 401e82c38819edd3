"""What an owner does when the store knows less than it does: it says so in the history, and ends.

A store that fails over to a replica which lacks the last writes goes back in time. Nobody but the
owner could have written, so a version below the one that the owner was told proves it, and so does
another nonce in its epoch; no replication id has to be watched for that. What was acknowledged in
between is gone, and the session goes on from what the store has: the event names the versions and
requests, and what the owner holds in memory is thrown away, so that the two never mix.
"""

import logging
from collections.abc import Mapping

from torpor import errors, ids, messages
from torpor.storage import records, store

log = logging.getLogger(__name__)

#: In `session.recovered`: why.
REASON = "store_went_back"
#: The newest of the lost requests are named, so that the event stays small.
REQUESTS_NAMED_MAX = 100


def went_back(known: records.Head, stored: records.Head) -> bool:
    """Whether the store has forgotten something that it had told the owner.

    Epochs and versions only grow, and an epoch has one nonce, or none once its owner is gone. That
    the store forgot a claim alone is no loss: nobody else was told of it.
    """
    if stored.version == known.version:
        return stored.commit_id != known.commit_id
    another = stored.epoch == known.epoch and stored.nonce not in ("", known.nonce)
    return stored.version < known.version or stored.epoch < known.epoch or another


async def report(
    sessions: store.Sessions,
    *,
    known: records.Head,
    stored: records.Head,
    mine: bool,
    outcomes: Mapping[str, records.Outcome],
    at_ms: int,
) -> errors.VersionsLost:
    """Write what is lost into the history of `stored`; returns the error to answer with.

    Args:
        sessions: the store.
        known: what the owner was told last.
        stored: the session as it is in the store.
        mine: whether the caller owns it there, so that it can write.
        outcomes: what the owner knows of requests.
        at_ms: the owner's wall clock.
    """
    lost = errors.VersionsLost(
        f"the store went back to an earlier state and is at version {stored.version}; of what it "
        f"had acknowledged up to version {known.version}, something is gone",
        tenant=known.key.tenant,
        session=known.key.session,
    )
    log.error("%s: %s", known.key, lost, extra={"action": "versions_lost"})
    try:
        if mine:
            await sessions.commit(_commit(known, stored, outcomes, at_ms))
    except errors.TorporError as error:
        # The caller is told all the same, and so is whoever asks for a version that it has seen.
        log.warning("%s: not reported: %s", known.key, error, extra={"action": "not_reported"})
    return lost


def _commit(
    known: records.Head,
    stored: records.Head,
    outcomes: Mapping[str, records.Outcome],
    at_ms: int,
) -> records.Commit:
    requests = [rid for rid, outcome in outcomes.items() if outcome.version > stored.version]
    event = messages.Event(
        seq=stored.next_seq,
        type=messages.SESSION_RECOVERED,
        data={
            "reason": REASON,
            "from_version": known.version,
            "to_version": stored.version,
            "lost": {
                "versions": _span(stored.version + 1, known.version),
                "events": _span(stored.next_seq, known.next_seq - 1),
                "requests": requests[-REQUESTS_NAMED_MAX:],
            },
        },
        version=stored.version + 1,
        at_ms=at_ms,
    )
    return records.Commit(
        key=stored.key,
        epoch=stored.epoch,
        nonce=stored.nonce,
        expected_version=stored.version,
        commit_id=ids.nonce(),
        events=(event,),
        at_ms=at_ms,
    )


def _span(first: int, last: int) -> list[int]:
    """Return both ends, or nothing: others have written since, and it cannot be told over what."""
    return [first, last] if first <= last else []
