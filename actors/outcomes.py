"""How long an owner remembers what became of requests."""

from collections.abc import Mapping

from torpor import limits
from torpor.storage import records


def worth_keeping(known: Mapping[str, records.Outcome], now_ms: int) -> dict[str, records.Outcome]:
    """Return what is under way, of the last hour, or among the newest.

    The newest stay whatever the clock says: one that is ahead must not forget what has just been
    handled.
    """
    since_ms = now_ms - limits.DEDUP_KEEP_MS
    versions = sorted(outcome.version for outcome in known.values())
    since_version = versions[-limits.DEDUP_HOT_MAX :][0] if versions else 0
    return {
        rid: outcome
        for rid, outcome in known.items()
        if outcome.state is records.OutcomeState.PENDING
        or outcome.at_ms >= since_ms
        or outcome.version >= since_version
    }
