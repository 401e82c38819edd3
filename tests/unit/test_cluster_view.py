"""What a gateway knows of nodes: staleness by beats, and its own placements until they show."""

import pytest

from torpor import errors
from torpor.router import cluster_view, placement
from torpor.storage import memory_store, records
from torpor.testing import clock, in_process_cluster

REQUEST = placement.Request(cpus=1.0, rss_bytes=100)


class World:
    """A view over one node."""

    def __init__(self, time: clock.FakeClock) -> None:
        self.clock = time
        self.store = memory_store.MemoryStore(time)
        self.cluster = in_process_cluster.InProcessCluster(self.store, nodes=1)
        self.view = cluster_view.ClusterView(self.store.nodes, time)

    async def second(self, *, beat: bool = True) -> placement.Candidate:
        """Let a second pass, with or without a beat of the node, and return what is known of it."""
        if beat:
            await self.cluster.beat()
        await self.view.refresh()
        return self.view.candidates()[0]


@pytest.fixture
async def world(fake_clock: clock.FakeClock) -> World:
    """One node that has just been seen."""
    made = World(fake_clock)
    await made.cluster.start()
    await made.view.refresh()
    return made


async def test_a_load_that_stands_still_becomes_stale(world: World) -> None:
    """A beat or two may be skipped; then the load is not believed until the next beat."""
    for _ in range(cluster_view.STALE_POLLS):
        assert not (await world.second(beat=False)).stale
    assert (await world.second(beat=False)).stale
    assert not (await world.second()).stale


async def test_a_node_without_a_load_is_no_candidate(world: World) -> None:
    """It was announced, and says nothing of itself yet."""
    record = world.view.views[0].record
    await world.store.nodes.withdraw(record.node)
    await world.store.nodes.announce(record)
    await world.view.refresh()
    assert world.view.candidates() == []


async def test_a_placement_counts_until_the_load_shows_it(world: World) -> None:
    """As a session for two beats; as CPU and memory it fades while the smoothed load rises."""
    made = world.view.placed("node-0", REQUEST)
    placed = world.view.candidates()[0].placed_since
    assert placed == placement.Placed(sessions=1, activating=1, cpus=1.0, rss_bytes=100)
    made.activating = False
    assert world.view.candidates()[0].placed_since.activating == 0
    first = (await world.second()).placed_since
    assert first.sessions == 1
    second = (await world.second()).placed_since
    assert second.sessions == 0
    assert 0 < second.cpus < first.cpus < 1.0
    for _ in range(cluster_view.KEPT_BEATS):
        last = (await world.second()).placed_since
    assert last == placement.Placed()


async def test_a_placement_does_not_fade_while_the_load_stands_still(world: World) -> None:
    """Polling alone is no news of the node."""
    world.view.placed("node-0", REQUEST)
    assert (await world.second(beat=False)).placed_since.cpus == 1.0


async def test_a_refused_placement_is_forgotten(world: World) -> None:
    """Only the one that was withdrawn."""
    first = world.view.placed("node-0", REQUEST)
    world.view.placed("node-0", REQUEST)
    world.view.withdraw(first)
    assert world.view.candidates()[0].placed_since.sessions == 1


async def test_a_node_that_came_back_starts_empty(world: World) -> None:
    """A new incarnation dropped what was placed on the old one."""
    world.view.placed("node-0", REQUEST)
    world.cluster.nodes["node-0"].incarnation = "inc-new"
    await world.cluster.start()
    await world.view.refresh()
    assert world.view.candidates()[0].placed_since == placement.Placed()


async def test_the_last_views_stay_while_the_store_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poller goes on trying, and what is known remains."""

    async def away() -> list[records.NodeView]:
        raise errors.StoreUnavailable

    monkeypatch.setattr(world.store.nodes, "views", away)
    with pytest.raises(errors.StoreUnavailable):
        await world.view.refresh()
    assert len(world.view.candidates()) == 1
