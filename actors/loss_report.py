"""Telling of what a store has lost: in the history, or to the owner in office; and to callers."""

import logging
import random

import msgspec

from torpor import clock, errors, ids, messages
from torpor.actors import rollback
from torpor.storage import digests, history, records, store

log = logging.getLogger(__name__)

#: A store that has just failed over may go away once more: a report is tried this often; with the
#: pauses between, some seconds. Nobody else knows what it says.
TRIES_MAX = 12
PAUSE_S = 0.5


class LossReport:
    """What one owner has to say, however often that is tried: it is written once."""

    def __init__(self, backing: store.Store, time: clock.Clock) -> None:
        self._store = backing
        self._clock = time
        self._id = ids.random_id("forgotten")

    async def compare(
        self, past: history.History, known: rollback.Known, *, nonce: str
    ) -> errors.VersionsLost | None:
        """Look what of `known` is lost, and write that down; `nonce` is the owner's by now.

        Returns:
            What to tell the caller; None if nothing is lost, or the store cannot be asked.
        """
        error: errors.VersionsLost | None = None
        for _ in range(TRIES_MAX):
            try:
                stored = await self._store.sessions.head(known.head.key)
                if stored.commit_id == self._id:
                    break
                lost = await rollback.find(past, known, stored, mine=stored.nonce == nonce)
                if lost is None:
                    break
                error = _error(stored, lost)
                log.error("%s: %s", stored.key, error, extra={"action": "versions_lost"})
                await (self._write if stored.nonce == nonce else self._leave)(stored, lost)
                break
            except (errors.Unavailable, errors.Fenced, errors.VersionConflict):
                # Or another has come in between, who is to be told.
                # Jitter, so that all owners of a node do not come back in one moment.
                await self._clock.sleep(PAUSE_S * (0.5 + random.random()))  # noqa: S311
            except errors.TorporError as refused:
                # The caller is told all the same, and so is whoever asks for what it has seen.
                log.warning("not reported: %s", refused, extra={"action": "not_reported"})
                break
        return error

    async def _write(self, stored: records.Head, lost: records.Forgotten) -> None:
        """Write it into the history of a session that is owned here."""
        at_ms = self._clock.now_ms()
        event = messages.Event(
            seq=stored.next_seq,
            type=messages.SESSION_RECOVERED,
            data=rollback.data(lost),
            version=stored.version + 1,
            at_ms=at_ms,
        )
        commit = records.Commit(
            key=stored.key,
            epoch=stored.epoch,
            nonce=stored.nonce,
            expected_version=stored.version,
            commit_id=self._id,
            events=(event,),
            at_ms=at_ms,
        )
        await self._store.sessions.commit(commit)

    async def _leave(self, stored: records.Head, lost: records.Forgotten) -> None:
        """Leave it to the session's owner, the one in office or the next, to write it down."""
        item = records.InboxItem(
            message=messages.Message(text="", request_id=self._id, sender="torpor"),
            body_digest=digests.of(msgspec.json.encode(lost)),
            at_ms=self._clock.now_ms(),
            forgotten=lost,
        )
        await self._store.wake.ensure(stored.key)
        await self._store.sessions.enqueue(stored.key, item)
        # As for any message: a sweep may have taken the first hint away before it was there.
        await self._store.wake.ensure(stored.key)


def _error(stored: records.Head, lost: records.Forgotten) -> errors.VersionsLost:
    what = f"of what it had acknowledged from version {lost.kept_version + 1} to {lost.version}"
    if lost.kept_version >= lost.version:
        what = f"of what it had acknowledged up to version {lost.version}, perhaps"
    return errors.VersionsLost(
        f"the store went back to an earlier state and is at version {stored.version}; {what} "
        "something is gone",
        tenant=stored.key.tenant,
        session=stored.key.session,
    )
