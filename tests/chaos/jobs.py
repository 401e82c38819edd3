"""What the load does next: one choice after another, all by one source of chance."""

import random
from collections.abc import Sequence
from typing import Any

import msgspec

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
#: How far back pages of events begin.
EVENTS_BACK_MAX = 40


class Slot:
    """A place in the load: one session after another lives in it."""

    def __init__(self, tenant: str, session: str) -> None:
        self.tenant = tenant
        self.session = session
        self.appends = 0
        #: The newest event that an answer told of.
        self.seq = 0
        self.replacing = False

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
    if verb == "deleted" and deleted:
        slot = rng.choice(deleted)
    foreign = rng.choice([other for other in pool if other.tenant != slot.tenant])
    ballast = _weighted(rng, BLOBS_KIB)
    return Job(
        verb=verb,
        slot=slot,
        gateways=rng.sample(gateways, min(2, len(gateways))),
        number=number,
        data={"blob": ballast} if rng.randrange(BLOB_EVERY) == 0 else {},
        back=rng.randrange(EVENTS_BACK_MAX),
        other=foreign.session,
    )


def _weighted(rng: random.Random, weights: dict[Any, int]) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]
