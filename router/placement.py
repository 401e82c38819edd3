"""Which node takes a session: pure functions over plain values.

Looking at a few nodes and taking the best of them does nearly as well as looking at all, and better
when the loads are old news: everybody who knows the one least loaded node would send everything
there (M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", and "How Useful Is
Old Information?"). With few nodes a sample of two would too often miss the only free one, so there
all are looked at; what this gateway has itself placed since, and a random pick among near equals,
keep placements from piling up on one node until its next report.
"""

import math
import random
from collections.abc import Collection, Sequence

import msgspec

from torpor.storage import records

#: Up to this many nodes all are looked at: their loads are in memory, and sampling would only lose.
LOOK_AT_ALL_MAX = 8
#: Scores closer than this are equal: less than a load report is exact to.
NEAR = 0.02

# CPU decides how fast sessions answer, so it counts most; memory is held also by idle sessions; an
# activation is a second of most of a core, soon over; the number of sessions only breaks ties
# between idle nodes.
CPU_WEIGHT = 1.0
MEMORY_WEIGHT = 0.6
ACTIVATING_WEIGHT = 0.3
SESSIONS_WEIGHT = 0.2
#: This many activations at a time make a node as unattractive as they can.
ACTIVATING_FULL = 4

#: What a node that may keep the session's workspace is better by: a quarter of its cores. A restore
#: costs other nodes more than that for as long as it takes, and no more than a node that is busy.
KEPT_BONUS = 0.25

#: Of a session nobody knows yet: a person types at it now and then.
UNKNOWN_CPUS = 0.05
UNKNOWN_RSS_BYTES = 64 << 20
#: A session in use takes a turn about this often; what a turn costs tells its load, also after a
#: long sleep.
TURN_EVERY_MS = 10_000
#: One process of Python code rarely keeps more than this many cores busy.
CPUS_MAX = 1.0


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """What was placed on a node and its published load does not show yet."""

    sessions: int = 0
    #: Of those, still being woken.
    activating: int = 0
    #: Cores.
    cpus: float = 0.0
    rss_bytes: float = 0.0


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A node as placement sees it."""

    node: str
    sessions: int
    activating: int
    sessions_max: int
    #: Share of the node's cores in use, 0 to 1 and above.
    cpu: float
    #: Share of the node's memory in use, 0 to 1.
    memory: float
    #: What the node has: cores and bytes.
    cpus: float
    memory_bytes: int
    alive: bool = True
    draining: bool = False
    #: Its load has stood still for too long to be believed.
    stale: bool = False
    placed_since: Placed = Placed()


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the session is expected to need."""

    #: Cores, on average, while it is in use.
    cpus: float = UNKNOWN_CPUS
    rss_bytes: int = UNKNOWN_RSS_BYTES
    #: The node that may keep its workspace; empty if none does, or there is nothing to keep.
    kept_by: str = ""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How a node would stand with the session on it; lower is better."""

    node: str
    total: float
    cpu: float
    memory: float
    activating: float
    sessions: float
    #: Taken off the others.
    kept: float = 0.0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The chosen node, and why."""

    node: str
    #: Of every node that was looked at, best first.
    scores: tuple[Score, ...]
    #: Nodes that were not considered → the reason.
    left_out: dict[str, str]


def expected(head: records.Head) -> Request:
    """Return what a session is expected to need, from what it has used so far."""
    usage = head.usage
    kept_by = head.left_node if head.manifest else ""
    if not usage.turns:
        return Request(kept_by=kept_by)
    lifetime_ms = max(head.updated_ms - head.created_ms, TURN_EVERY_MS)
    per_turn_ms = usage.cpu_ms / usage.turns
    cpus = max(usage.cpu_ms / lifetime_ms, per_turn_ms / TURN_EVERY_MS)
    return Request(
        cpus=min(cpus, CPUS_MAX),
        rss_bytes=usage.rss_bytes or UNKNOWN_RSS_BYTES,
        kept_by=kept_by,
    )


def choose(
    candidates: Sequence[Candidate],
    request: Request,
    rng: random.Random,
    *,
    excluded: Collection[str] = (),
) -> Decision | None:
    """Return the node to ask, or None if no candidate can take a session.

    `excluded` are nodes that refused this session already.
    """
    left_out = reasons_against(candidates, excluded)
    fit = [candidate for candidate in candidates if candidate.node not in left_out]
    if not fit:
        return None
    if len(fit) > LOOK_AT_ALL_MAX:
        looked_at = rng.sample(fit, max(2, math.ceil(math.sqrt(len(fit)))))
        fit = looked_at + [c for c in fit if c.node == request.kept_by and c not in looked_at]
    scores = sorted((score(c, request) for c in fit), key=lambda scored: scored.total)
    near = [scored for scored in scores if scored.total - scores[0].total < NEAR]
    return Decision(node=rng.choice(near).node, scores=tuple(scores), left_out=left_out)


def reasons_against(
    candidates: Sequence[Candidate], excluded: Collection[str] = ()
) -> dict[str, str]:
    """Return the nodes that cannot take a session, each with the reason in a word."""
    return {c.node: why for c in candidates if (why := _reason_against(c, excluded))}


def score(candidate: Candidate, request: Request) -> Score:
    """Return how the node would stand with the session on it."""
    placed = candidate.placed_since
    cpu = candidate.cpu + (placed.cpus + request.cpus) / candidate.cpus
    memory = candidate.memory + (placed.rss_bytes + request.rss_bytes) / candidate.memory_bytes
    activating = min(1.0, (candidate.activating + placed.activating) / ACTIVATING_FULL)
    sessions = (candidate.sessions + placed.sessions) / candidate.sessions_max
    kept = KEPT_BONUS if candidate.node == request.kept_by else 0.0
    return Score(
        node=candidate.node,
        total=CPU_WEIGHT * cpu
        + MEMORY_WEIGHT * memory
        + ACTIVATING_WEIGHT * activating
        + SESSIONS_WEIGHT * sessions
        - kept,
        cpu=cpu,
        memory=memory,
        activating=activating,
        sessions=sessions,
        kept=kept,
    )


def _reason_against(candidate: Candidate, excluded: Collection[str]) -> str:
    if not candidate.alive:
        return "dead"
    if candidate.node in excluded:
        return "refused"
    if candidate.draining:
        return "draining"
    if candidate.stale:
        return "stale"
    if candidate.sessions + candidate.placed_since.sessions >= candidate.sessions_max:
        return "full"
    return ""
