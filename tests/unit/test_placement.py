"""Placement: who is left out, who is chosen, and how even the load becomes."""

import math
import random
import statistics

import msgspec
import pytest

from torpor.router import cluster_view, placement
from torpor.storage import records


def candidate(node: str, **fields: object) -> placement.Candidate:
    """Return a node that idles, changed by `fields`."""
    usual: dict[str, object] = {
        "sessions": 0,
        "activating": 0,
        "sessions_max": 100,
        "cpu": 0.0,
        "memory": 0.0,
        "cpus": 2.0,
        "memory_bytes": 4 << 30,
    }
    return placement.Candidate(node=node, **{**usual, **fields})


def choose(
    *candidates: placement.Candidate, excluded: tuple[str, ...] = ()
) -> placement.Decision | None:
    """Choose with a seed of its own, so that a failing test fails again."""
    return placement.choose(candidates, placement.Request(), random.Random(1), excluded=excluded)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"alive": False}, "dead"),
        ({"draining": True}, "draining"),
        ({"stale": True}, "stale"),
        ({"sessions": 100}, "full"),
        ({"sessions": 99, "placed_since": placement.Placed(sessions=1)}, "full"),
    ],
)
def test_a_node_that_cannot_take_a_session_is_left_out(
    fields: dict[str, object], reason: str
) -> None:
    """Each reason keeps even an otherwise idle node out, and is told."""
    decision = choose(candidate("bad", **fields), candidate("busy", cpu=0.9))
    assert decision is not None
    assert decision.node == "busy"
    assert decision.left_out == {"bad": reason}


def test_a_node_that_refused_is_not_asked_again() -> None:
    """An excluded node is left out; when all are, there is no decision."""
    nodes = candidate("a"), candidate("b", cpu=0.9)
    decision = choose(*nodes, excluded=("a",))
    assert decision is not None
    assert decision.node == "b"
    assert choose(*nodes, excluded=("a", "b")) is None


@pytest.mark.parametrize(
    "worse",
    [
        {"cpu": 0.2},
        {"memory": 0.2},
        {"activating": 2},
        {"sessions": 50},
        {"placed_since": placement.Placed(cpus=0.5)},
    ],
)
def test_each_part_of_the_score_counts(worse: dict[str, object]) -> None:
    """Of two nodes that differ in one thing the better one is chosen, and both scores are kept."""
    decision = choose(candidate("worse", **worse), candidate("better"))
    assert decision is not None
    assert decision.node == "better"
    assert [scored.node for scored in decision.scores] == ["better", "worse"]


def test_many_nodes_are_sampled() -> None:
    """Of 10 000 nodes a hundred are looked at, and the best of those is taken."""
    nodes = [candidate(f"n{i}", cpu=i / 10_000) for i in range(10_000)]
    decision = choose(*nodes)
    assert decision is not None
    assert len(decision.scores) == math.isqrt(10_000)
    assert decision.scores[0].cpu < 0.1


def head(usage: records.Usage, lifetime_ms: int) -> records.Head:
    """Return a head with this usage."""
    return records.Head(
        key=records.SessionKey("t", "s"),
        agent="a",
        agent_version=1,
        status=records.Status.IDLE,
        epoch=1,
        nonce="",
        owner=None,
        version=1,
        next_seq=2,
        hot_from=1,
        cold_index="",
        commit_id="",
        checkpoint=None,
        manifest="",
        usage=usage,
        created_ms=0,
        updated_ms=lifetime_ms,
    )


def test_a_session_is_expected_to_need_what_it_used() -> None:
    """A new session is guessed at; a heavy one counts as heavy, also after a month of sleep."""
    assert placement.expected(head(records.Usage(), 0)) == placement.Request()
    usage = records.Usage(turns=10, cpu_ms=20_000, busy_ms=20_000, rss_bytes=1 << 30)
    busy = placement.expected(head(usage, 40_000))
    assert busy == placement.Request(cpus=0.5, rss_bytes=1 << 30)
    rested = placement.expected(head(usage, 30 * 86_400_000))
    assert rested.cpus == pytest.approx(0.2)


def test_a_session_is_drawn_to_the_node_that_may_keep_its_files() -> None:
    """The node that it last left in order, if there are files; nothing else follows from it."""
    left = msgspec.structs.replace(head(records.Usage(), 0), left_node="b", manifest="b3-00")
    assert placement.expected(left).kept_by == "b"
    empty = msgspec.structs.replace(left, manifest="")
    assert placement.expected(empty) == placement.Request()


@pytest.mark.parametrize(("cpu", "chosen"), [(0.2, "keeper"), (0.3, "other")])
def test_kept_files_weigh_less_than_a_busy_node(cpu: float, chosen: str) -> None:
    """A restore is avoided up to a point: beyond it the session is better off elsewhere."""
    request = placement.Request(kept_by="keeper")
    pair = [candidate("keeper", cpu=cpu), candidate("other")]
    decision = placement.choose(pair, request, random.Random(1))
    assert decision is not None
    assert decision.node == chosen


@pytest.mark.parametrize("fields", [{"draining": True}, {"sessions": 100}, {"alive": False}])
def test_a_node_that_cannot_take_a_session_keeps_its_files_in_vain(
    fields: dict[str, object],
) -> None:
    """What rules a node out rules it out, whatever it keeps."""
    request = placement.Request(kept_by="keeper")
    pair = [candidate("keeper", **fields), candidate("other", cpu=0.9)]
    decision = placement.choose(pair, request, random.Random(1))
    assert decision is not None
    assert decision.node == "other"


def test_among_many_nodes_the_keeper_is_looked_at() -> None:
    """A sample would miss it nearly always."""
    many = [candidate(f"n{number}") for number in range(1_000)]
    request = placement.Request(kept_by="n777")
    for seed in range(5):
        decision = placement.choose(many, request, random.Random(seed))
        assert decision is not None
        assert decision.node == "n777"


# A small simulation: one gateway, three nodes, loads that are seen late and smoothed.

NODES = ("a", "b", "c")
#: The node agents' smoothing, in seconds.
SMOOTHING_S = 3.0
#: Somebody else's program keeps this much of node a busy.
OUTSIDE = 0.3
HEAVY_CPUS = 0.2
LIGHT_CPUS = 0.02


def simulate(seed: int, *, at_random: bool) -> float:
    """Place 60 sessions, one a second: every fifth ten times as heavy, half of them unknown.

    Returns the busiest node's live load over the mean.
    """
    rng = random.Random(seed)
    sessions = [HEAVY_CPUS if i % 5 == 0 else LIGHT_CPUS for i in range(60)]
    rng.shuffle(sessions)
    live = {"a": OUTSIDE, "b": 0.0, "c": 0.0}
    published = dict(live)
    placed: list[cluster_view.Placement] = []
    for second in range(60):
        for node in NODES:
            published[node] += (live[node] - published[node]) / SMOOTHING_S
        cpus = sessions.pop()
        known = rng.random() < 0.5
        request = placement.Request(cpus=cpus) if known else placement.Request()
        candidates = [
            candidate(
                node,
                cpu=published[node],
                placed_since=cluster_view.correction(
                    (made, second - made.beat) for made in placed if made.node == node
                ),
            )
            for node in NODES
        ]
        decision = placement.choose(candidates, request, rng)
        assert decision is not None
        node = rng.choice(NODES) if at_random else decision.node
        placed.append(cluster_view.Placement(node, second, request))
        live[node] += cpus / 2.0
    return max(live.values()) / statistics.mean(live.values())


def test_load_becomes_even() -> None:
    """Over 20 seeds the busiest node is within a quarter of the mean; random placement is not."""
    chosen = [simulate(seed, at_random=False) for seed in range(20)]
    random_ones = [simulate(seed, at_random=True) for seed in range(20)]
    assert max(chosen) <= 1.25
    assert statistics.mean(chosen) < 1.12
    assert statistics.mean(random_ones) > 1.3
