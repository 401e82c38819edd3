"""The battery's stores do what its faults need: real servers, as torpor's own store sees them."""

import asyncio
import pathlib
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from torpor import clock, deployment, errors
from torpor.storage import keys, records, redis_store, redis_wire
from torpor.testing import eventually, proxy, store_samples

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "chaos"))

import stores
import wall_clock

pytestmark = pytest.mark.asyncio(loop_scope="module")

Open = Callable[..., redis_store.RedisStore]
HOUR_S = 3_600
#: Of the wire to a store that stalls.
IMPATIENT_S = 0.2

needs_library = pytest.mark.skipif(wall_clock.library() is None, reason="no libfaketime")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world_stores(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[stores.Stores]:
    """Yield stores that all tests share; each heals what it breaks."""
    async with stores.Stores(tmp_path_factory.mktemp("stores")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicated(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[stores.Stores]:
    """Yield stores of a deployment that acknowledges nothing that one server alone has."""
    level = deployment.Durability.REPLICATED
    async with stores.Stores(tmp_path_factory.mktemp("replicated"), durability=level) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def open_store() -> AsyncIterator[Open]:
    """Yield a function that opens a store by URL; what it opened is closed after the test."""
    opened: list[redis_store.RedisStore] = []

    def open_one(
        url: str, level: deployment.Durability = deployment.Durability.FSYNC
    ) -> redis_store.RedisStore:
        opened.append(redis_store.open(store_samples.deployment_at(url, level)))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


async def advance(store: redis_store.RedisStore, head: records.Head) -> records.Head:
    """Commit once more; returns the new head."""
    await store.sessions.commit(store_samples.commit(head))
    return await store.sessions.head(head.key)


async def test_restarted_primary_has_what_it_acknowledged(
    world_stores: stores.Stores, open_store: Open
) -> None:
    """A kill and a start on the same file lose nothing, by either way to it."""
    store, direct = open_store(world_stores.url), open_store(world_stores.direct_url)
    head = await advance(store, await store_samples.owned(store))
    await world_stores.restart_primary()
    assert await direct.sessions.head(head.key) == head
    await advance(store, head)


async def test_failover_to_a_replica_with_everything_loses_nothing(
    world_stores: stores.Stores, open_store: Open
) -> None:
    """Whatever was acknowledged is there, and the server that was primary follows."""
    store = open_store(world_stores.url)
    head = await advance(store, await store_samples.owned(store))
    before, after = world_stores.primary, world_stores.replica
    await world_stores.fail_over()
    assert await store.sessions.head(head.key) == head
    await world_stores.rebuild_replica()
    assert (world_stores.primary, world_stores.replica) == (after, before)
    await advance(store, head)


async def test_failover_to_a_replica_that_lacks_the_last_writes(
    world_stores: stores.Stores, open_store: Open
) -> None:
    """What was acknowledged after the replica was detached is gone, and what came before is not."""
    store, direct = open_store(world_stores.url), open_store(world_stores.direct_url)
    head = await advance(store, await store_samples.owned(store))
    await world_stores.detach_replica()
    assert (await advance(store, head)).version == head.version + 1
    await world_stores.promote_replica()
    assert await store.sessions.head(head.key) == head
    assert await direct.sessions.head(head.key) == head
    await world_stores.rebuild_replica()
    await advance(store, head)


async def test_replicated_deployment_acknowledges_nothing_that_a_failover_loses(
    replicated: stores.Stores, open_store: Open
) -> None:
    """While its replica is detached a primary refuses, so the replica has all that was told."""
    lax = open_store(replicated.url)
    store = open_store(replicated.url, deployment.Durability.REPLICATED)
    # Once this commit is acknowledged, the replica has all that came before it.
    head = await advance(store, await store_samples.owned(lax))
    store._wire.barrier = redis_wire.Barrier(local=1, replicas=1, timeout_ms=50)
    await replicated.detach_replica()
    with pytest.raises((errors.StoreReadOnly, errors.OutcomeUnknown)):
        await advance(store, head)
    await replicated.promote_replica()
    # Asked for what one disk has: the new primary has no replica yet.
    assert await lax.sessions.head(head.key) == head
    await replicated.rebuild_replica()
    await advance(lax, head)


async def test_lost_answers_are_those_to_commits(
    world_stores: stores.Stores, open_store: Open
) -> None:
    """As many commits as asked for take place unheard; other writes and later commits are heard."""
    store = open_store(world_stores.url)
    head = await store_samples.owned(store)
    world_stores.proxy.lose_answers(2, stores.commit_marks())
    for _ in range(2):
        with pytest.raises(errors.OutcomeUnknown):
            await advance(store, head)
        assert (await store.sessions.head(head.key)).version == head.version + 1
        head = (
            await store.sessions.acquire(store_samples.claim(await store.sessions.head(head.key)))
        ).head
    assert (await advance(store, head)).version == head.version + 1


async def test_lost_answer_counts_once_the_script_is_known(
    world_stores: stores.Stores, open_store: Open
) -> None:
    """A server that has to be sent the script first still applies the commit, and is not heard."""
    store = open_store(world_stores.url)
    head = await store_samples.owned(store)
    await asyncio.to_thread(world_stores.primary.call, "SCRIPT", "FLUSH")
    world_stores.proxy.lose_answers(1, stores.commit_marks())
    with pytest.raises(errors.OutcomeUnknown):
        await advance(store, head)
    assert (await store.sessions.head(head.key)).version == head.version + 1


async def test_stalled_commit_takes_place_later(
    world_stores: stores.Stores, open_store: Open
) -> None:
    """What a stall held is delivered after its sender gave up, if nobody claimed meanwhile."""
    patient = open_store(world_stores.direct_url)
    wire = redis_wire.Wire(world_stores.url, answer_timeout_s=IMPATIENT_S)
    store = redis_store.RedisStore(wire, deployment.Durability.FSYNC, clock.SystemClock())
    head = await advance(store, await store_samples.owned(store))
    await world_stores.proxy.set_mode(proxy.Mode.STALL)
    with pytest.raises(errors.OutcomeUnknown):
        await advance(store, head)
    assert (await patient.sessions.head(head.key)).version == head.version
    await world_stores.proxy.set_mode(proxy.Mode.FORWARD)

    async def landed() -> bool:
        return (await patient.sessions.head(head.key)).version == head.version + 1

    await eventually.assert_eventually(landed)
    await store.close()


async def test_full_and_read_only_primary_refuse_and_recover(
    world_stores: stores.Stores, open_store: Open
) -> None:
    """Both say what they are, and both take writes again afterwards."""
    store = open_store(world_stores.url)
    head = await store_samples.owned(store)
    for broken, message in (
        (world_stores.full(), "raise maxmemory"),
        (world_stores.read_only(), "point store_url at the primary"),
    ):
        async with broken:
            with pytest.raises(errors.StoreReadOnly, match=message):
                await advance(store, head)
        head = await advance(store, head)


async def test_frozen_primary_answers_when_it_is_let_go(
    world_stores: stores.Stores, open_store: Open
) -> None:
    """A commit that was sent while it stood still is answered afterwards."""
    store = open_store(world_stores.url)
    head = await advance(store, await store_samples.owned(store))
    async with world_stores.frozen():
        commit = asyncio.create_task(store.sessions.commit(store_samples.commit(head)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(commit), IMPATIENT_S)
    assert (await commit).version == head.version + 1


@needs_library
@pytest.mark.parametrize(("offset_s", "stands"), [(HOUR_S, False), (-HOUR_S, True)])
async def test_clock_of_the_store_decides_over_leases(
    world_stores: stores.Stores, open_store: Open, offset_s: int, stands: bool
) -> None:
    """Forward, a lease of a minute ends at once; back, one of moments stands on; then it ends."""
    store = open_store(world_stores.url)
    node, ttl_ms = f"node{offset_s}", 60_000 if offset_s > 0 else 4_000
    assert await store.nodes.claim_lease(node, "life", ttl_ms=ttl_ms)
    async with world_stores.jumped(offset_s):
        assert await store.nodes.lease_stands(node, "life") is stands
        lease = keys.lease(node, "life")
        left = await asyncio.to_thread(world_stores.primary.call, "PTTL", lease)
        assert (int(left.lstrip(":")) > HOUR_S * 900) is stands
