"""What one commit is to change, before it is numbered."""

from collections.abc import Mapping, Sequence

import msgspec

from torpor import messages
from torpor.actors import turn_context
from torpor.storage import records


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What one commit changes, before it is numbered. None and empty mean: as it was."""

    drafts: Sequence[turn_context.Draft] = ()
    #: The agent, pickled.
    state: bytes | None = None
    manifest: str | None = None
    #: The restore point whose state is the newest again, unless `state` differs from it.
    back_to: records.RestorePoint | None = None
    status: records.Status | None = None
    usage: records.Usage | None = None
    #: The request that this commit resolves, and how.
    request_id: str = ""
    body_digest: str = ""
    outcome: records.OutcomeState = records.OutcomeState.DONE
    #: Which of `drafts` answers the request.
    answer: int = -1
    #: Request ids of the inbox's first items that this commit removes.
    consumed: Sequence[str] = ()
    #: What is known already of requests that came again, and is to be known beside the hot tail.
    known: Mapping[str, records.Outcome] = {}

    def outcome_of(
        self, events: Sequence[messages.Event], version: int, at_ms: int
    ) -> Mapping[str, records.Outcome]:
        """Return what becomes known of requests, once the drafts are numbered."""
        if not self.request_id:
            return self.known
        outcome = records.Outcome(
            body_digest=self.body_digest,
            state=self.outcome,
            version=version,
            seq=events[self.answer].seq,
            at_ms=at_ms,
        )
        return {self.request_id: outcome}
