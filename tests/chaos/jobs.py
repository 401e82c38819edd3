"""What the load does next: one choice after another, all by one source of chance."""

import random
from collections.abc import Sequence
from typing import Any

import msgspec

from torpor.testing import witness_client

#: Of a thousand operations. What starts a process costs a second of CPU and is therefore rare.
MIX = {
    "append": 600,
    "accept": 50,
    "read": 120,
    "events": 80,
    "get": 78,
    "foreign": 50,
    "deleted": 10,
    "pause": 6,
    "evict": 4,
    "replace": 2,
}
#: One of so many appends rewrites a file and the ballast of the state.
BLOB_EVERY = 20
#: KiB of it and their weights; the last is more than the store keeps inline.
BLOBS_KIB = {1: 6, 4: 3, 40: 1}
#: How far back pages of events begin; one of so many begins at the first event, which is where
#: nobody else looks: what was moved out of the store.
EVENTS_BACK_MAX = 40
FROM_START_EVERY = 40
#: More events than a session ever has.
ALL_EVENTS = 1 << 30


class Slot:
    """A place in the load: one session after another lives in it."""

    def __init__(self, tenant: str, session: str) -> None:
        self.tenant = tenant
        self.session = session
        self.appends = 0
        #: The newest event that an answer told of.
        self.seq = 0
        self.replacing = False
        #: The whole history, read before the session was deleted; None if it could not be.
        self.last: witness_client.Reading | None = None

    @property
    def key(self) -> str:
        """`tenant/session`, as probes name it."""
        return f"{self.tenant}/{self.session}"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do, all choices made."""

    #: Of `MIX`.
    verb: str
    slot: Slot
    #: Asked first, and a second one where a request is delivered several times.
    gateways: Sequence[str]
    #: Unique in the run: tokens and request ids are made of it.
    number: int
    #: Of the message, if it sends one.
    data: dict[str, Any]
    #: Of `events`: how far back to begin.
    back: int
    #: Of `foreign`: the other tenant's session.
    other: str


def choose(
    rng: random.Random,
    *,
    number: int,
    pool: Sequence[Slot],
    deleted: Sequence[Slot],
    gateways: Sequence[str],
) -> Job:
    """Return the next job.

    Args:
        rng: makes all choices.
        number: of the job, from 1.
        pool: of both tenants.
        deleted: sessions that are gone and may be asked for.
        gateways: at least one.
    """
    verb = _weighted(rng, MIX)
    slot = rng.choice(pool)
    # Drawn in any case: how many are deleted is a matter of time, the choices after it are not.
    lot = rng.random()
    if verb == "deleted" and deleted:
        slot = deleted[int(lot * len(deleted))]
    foreign = rng.choice([other for other in pool if other.tenant != slot.tenant])
    ballast = _weighted(rng, BLOBS_KIB)
    back = rng.randrange(EVENTS_BACK_MAX)
    from_start = rng.randrange(FROM_START_EVERY) == 0
    return Job(
        verb=verb,
        slot=slot,
        gateways=rng.sample(gateways, min(2, len(gateways))),
        number=number,
        data={"blob": ballast} if rng.randrange(BLOB_EVERY) == 0 else {},
        back=ALL_EVENTS if from_start else back,
        other=foreign.session,
    )


def _weighted(rng: random.Random, weights: dict[Any, int]) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]
