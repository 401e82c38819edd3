"""What a store says when its server is away, full, read-only, or answers and is not heard."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from torpor import errors
from torpor.storage import keys, redis_store
from torpor.testing import eventually, proxy, store_samples, valkey

Open = Callable[[str], redis_store.RedisStore]


@pytest.fixture
async def open_store() -> AsyncIterator[Open]:
    """Yield a function that opens a store by URL; what it opened is closed after the test."""
    opened: list[redis_store.RedisStore] = []

    def open_one(url: str) -> redis_store.RedisStore:
        opened.append(redis_store.open(store_samples.deployment_at(url)))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


async def test_server_gone_at_start(open_store: Open) -> None:
    """Without a server reads and writes are unavailable, a commit too: it was never sent."""
    async with proxy.Proxy(1) as gone:
        await gone.set_mode(proxy.Mode.DOWN)
        store = open_store(gone.url)
        head = store_samples.head()
        with pytest.raises(errors.StoreUnavailable):
            await store.check_durability()
        with pytest.raises(errors.StoreUnavailable):
            await store.sessions.head(head.key)
        with pytest.raises(errors.StoreUnavailable):
            await store.sessions.commit(store_samples.commit(head))


async def test_acknowledged_commits_survive_a_kill(
    open_store: Open, own_store_server: valkey.Server
) -> None:
    """After a kill and a restart on the same files everything acknowledged is there."""
    store = open_store(own_store_server.url)
    head = await store_samples.owned(store)
    for _ in range(5):
        await store.sessions.commit(store_samples.commit(await store.sessions.head(head.key)))
    before = await store.sessions.head(head.key)
    own_store_server.kill()
    with pytest.raises(errors.StoreUnavailable):
        await store.sessions.head(head.key)
    own_store_server.start()
    assert await store.sessions.head(head.key) == before
    done = await store.sessions.commit(store_samples.commit(before))
    assert done.version == before.version + 1


async def test_idle_connection_that_was_cut_is_no_unknown_outcome(
    open_store: Open, own_store_server: valkey.Server
) -> None:
    """A commit over a connection that a restart closed meanwhile just connects again."""
    store = open_store(own_store_server.url)
    head = await store_samples.owned(store)
    # In a thread, so that the loop sees the old connection end.
    await asyncio.to_thread(own_store_server.restart)
    assert (await store.sessions.commit(store_samples.commit(head))).version == 2


async def test_scripts_that_the_server_lost_are_sent_again(
    open_store: Open, own_store_server: valkey.Server
) -> None:
    """A server that knows no script gets it with the call."""
    store = open_store(own_store_server.url)
    head = await store_samples.owned(store)
    assert own_store_server.call("SCRIPT", "FLUSH") == "+OK"
    assert (await store.sessions.commit(store_samples.commit(head))).version == 2


async def test_lost_answer_is_an_unknown_outcome(
    open_store: Open, store_server: valkey.Server
) -> None:
    """A commit whose answer was lost says so; the head shows that it took place."""
    async with proxy.Proxy(store_server.port) as between:
        store = open_store(between.url)
        head = await store_samples.owned(store)
        # The server knows the script from now on, so that one answer is the whole call.
        await store.sessions.commit(store_samples.commit(head))
        commit = store_samples.commit(await store.sessions.head(head.key))
        await between.set_mode(proxy.Mode.DROP_REPLIES)
        with pytest.raises(errors.OutcomeUnknown):
            await store.sessions.commit(commit)
        assert between.dropped == 1
        await between.set_mode(proxy.Mode.FORWARD)
        taken = await store.sessions.acquire(
            store_samples.claim(await store.sessions.head(head.key))
        )
        assert (taken.head.commit_id, taken.head.version) == (commit.commit_id, 3)
        with pytest.raises(errors.Fenced):
            await store.sessions.commit(commit)


async def test_lost_answer_to_other_writes_is_unavailable(
    open_store: Open, store_server: valkey.Server
) -> None:
    """What may be repeated is unavailable when its answer is lost, and repeating it works."""
    async with proxy.Proxy(store_server.port) as between:
        store = open_store(between.url)
        head = await store.sessions.create(store_samples.new(store_samples.key()))
        claim = store_samples.claim(head)
        await between.set_mode(proxy.Mode.DROP_REPLIES)
        with pytest.raises(errors.StoreUnavailable):
            await store.sessions.acquire(claim)
        await between.set_mode(proxy.Mode.FORWARD)
        assert (await store.sessions.acquire(claim)).head.epoch == 1


async def test_cancelled_call_leaves_no_answer_behind(
    open_store: Open, store_server: valkey.Server
) -> None:
    """A call of many answers, given up at any of its steps, hands none of them to the next one."""
    store = open_store(store_server.url)
    head = await store_samples.owned(store)
    claim = store_samples.claim(head)
    given_up = 0
    for steps in range(20):
        call = asyncio.ensure_future(store.sessions.acquire(claim))
        for _ in range(steps):
            await asyncio.sleep(0)
        given_up += call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (await store.sessions.head(head.key)).key == head.key
        assert await store.sessions.outcome(head.key, "r-1") is None
        claim = store_samples.claim(await store.sessions.head(head.key))
    assert given_up > 1


async def test_replica_refuses_writes(open_store: Open, own_store_server: valkey.Server) -> None:
    """On a read-only replica reads work, and a commit definitely did not happen."""
    store = open_store(own_store_server.url)
    head = await store_samples.owned(store)
    # Its primary is not there: it keeps what it has.
    own_store_server.configure("replica-serve-stale-data", "yes")
    assert own_store_server.call("REPLICAOF", "127.0.0.1", "1") == "+OK"
    with pytest.raises(errors.StoreReadOnly, match="point store_url at the primary"):
        await store.sessions.commit(store_samples.commit(head))
    with pytest.raises(errors.StoreReadOnly):
        await store.wake.ensure(head.key)
    assert await store.sessions.head(head.key) == head
    assert own_store_server.call("REPLICAOF", "NO", "ONE") == "+OK"
    assert (await store.sessions.commit(store_samples.commit(head))).version == 2


@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
async def test_full_server_refuses_whole_commits(
    open_store: Open, own_store_server: valkey.Server, appendfsync: str
) -> None:
    """A full server changes nothing of a commit; reading, releasing and deleting still work."""
    own_store_server.configure("appendfsync", appendfsync)
    store = open_store(own_store_server.url)
    head = await store_samples.owned(store)
    await store.sessions.enqueue(head.key, store_samples.item("r-1"))
    own_store_server.configure("maxmemory", "1")
    with pytest.raises(errors.StoreReadOnly, match="raise maxmemory"):
        await store.sessions.commit(
            store_samples.commit(head, consumed=("r-1",), outcomes={"r-1": store_samples.done()})
        )
    assert await store.sessions.head(head.key) == head
    assert await store.sessions.inbox(head.key) == [store_samples.item("r-1")]
    assert not await store.sessions.release(
        head.key, epoch=head.epoch, nonce=head.nonce, expected_version=head.version
    )
    assert await store.sessions.vacate(head.key, epoch=head.epoch, incarnation="inc-1")
    await store.sessions.delete(head.key)
    with pytest.raises(errors.SessionDeleted):
        await store.sessions.head(head.key)


async def test_too_few_replicas_refuse_writes(
    open_store: Open, own_store_server: valkey.Server
) -> None:
    """A server that wants replicas and has none refuses, and the message says where to look."""
    store = open_store(own_store_server.url)
    head = await store_samples.owned(store)
    own_store_server.configure("min-replicas-to-write", "1")
    with pytest.raises(errors.StoreReadOnly, match="min-replicas-to-write"):
        await store.sessions.commit(store_samples.commit(head))
    assert await store.sessions.head(head.key) == head


async def test_wrong_password_is_not_an_unknown_outcome(
    open_store: Open, own_store_server: valkey.Server
) -> None:
    """A server that lets nobody in is unavailable, for commits too."""
    own_store_server.configure("requirepass", "secret")
    store = open_store(own_store_server.url)
    with pytest.raises(errors.StoreUnavailable, match=r"(?i)authentication"):
        await store.sessions.commit(store_samples.commit(store_samples.head()))


async def test_page_skips_entries_without_a_head(
    open_store: Open, store_server: valkey.Server
) -> None:
    """An index entry whose head was never written is left out."""
    store = open_store(store_server.url)
    head = await store.sessions.create(store_samples.new(store_samples.key("here")))
    index = keys.sessions(head.key.tenant)
    assert store_server.call("ZADD", index, "1", "dangling") == ":1"
    assert await store.sessions.page(head.key.tenant, after="", limit=9) == ([head], "")
    assert await store.sessions.page(head.key.tenant, after="", limit=1) != ([], "")


async def test_page_token_must_be_one(open_store: Open, store_server: valkey.Server) -> None:
    """Garbage for a page token is the caller's fault."""
    store = open_store(store_server.url)
    for token in ("garbage", "Zm9v", "é", "bmFuIGE=", "MV8wIGE="):
        with pytest.raises(errors.InvalidField):
            await store.sessions.page("tenant", after=token, limit=1)


async def test_feed_survives_a_lost_connection(
    open_store: Open, store_server: valkey.Server
) -> None:
    """After the connection came back every watcher is nudged, and nudges flow again."""
    async with proxy.Proxy(store_server.port) as between:
        store = open_store(between.url)
        direct = open_store(store_server.url)
        key = store_samples.key()
        watcher = store.feed.subscribe(key)
        assert await anext(watcher) == b"c"
        await between.set_mode(proxy.Mode.DOWN)
        await between.set_mode(proxy.Mode.FORWARD)
        async with asyncio.timeout(10):
            assert await anext(watcher) == b"c"
            await direct.feed.publish_delta(key, b"again")
            assert await anext(watcher) == b"dagain"
        await watcher.aclose()


async def test_slow_watcher_loses_the_oldest(open_store: Open, store_server: valkey.Server) -> None:
    """A watcher that does not read keeps a bounded number of the newest nudges."""
    store = open_store(store_server.url)
    key = store_samples.key()
    slow, quick = store.feed.subscribe(key), store.feed.subscribe(key)
    assert await anext(slow) == await anext(quick) == b"c"
    last = 300
    for i in range(last + 1):
        await store.feed.publish_delta(key, b"%d" % i)
        assert await anext(quick) == b"d%d" % i
    seen = [await anext(slow)]
    while seen[-1] != b"d%d" % last:
        seen.append(await anext(slow))
    assert len(seen) == 256
    await slow.aclose()
    await quick.aclose()


async def test_last_watcher_unsubscribes(open_store: Open, own_store_server: valkey.Server) -> None:
    """Nobody's channel is not listened to."""
    store = open_store(own_store_server.url)
    key = store_samples.key()
    watcher = store.feed.subscribe(key)
    await anext(watcher)
    assert own_store_server.call("PUBLISH", keys.live(key), "c") == ":1"
    await watcher.aclose()

    async def nobody_listens() -> bool:
        return own_store_server.call("PUBLISH", keys.live(key), "c") == ":0"

    await eventually.assert_eventually(nobody_listens)
