"""A store that is set below the deployment's durability is refused, with the remedy."""

import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from torpor import deployment, errors
from torpor.storage import redis_durability, redis_store, redis_wire
from torpor.testing import eventually, store_samples, valkey

MEMORY, FSYNC, REPLICATED = deployment.Durability
Open = Callable[[deployment.Durability], redis_store.RedisStore]


@pytest.fixture
async def open_store(own_store_server: valkey.Server) -> AsyncIterator[Open]:
    """Yield a function that opens a store at a level; what it opened is closed after the test."""
    opened: list[redis_store.RedisStore] = []

    def open_one(level: deployment.Durability) -> redis_store.RedisStore:
        settings = store_samples.deployment_at(own_store_server.url, level)
        opened.append(redis_store.open(settings))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


def server(**changes: Any) -> redis_durability.Server:
    """Return what a well set server says, but for `changes`."""
    facts: dict[str, Any] = {
        "version": (7, 2),
        "aof_enabled": True,
        "replicas": 1,
        "appendfsync": "always",
        "maxmemory_bytes": 0,
        "maxmemory_policy": "noeviction",
    }
    return redis_durability.Server(**{**facts, **changes})


@pytest.mark.parametrize(
    ("level", "changes", "message"),
    [
        (MEMORY, {"maxmemory_bytes": 1, "maxmemory_policy": "allkeys-lru"}, "is allkeys-lru"),
        (FSYNC, {"maxmemory_bytes": 1, "maxmemory_policy": "volatile-ttl"}, "is volatile-ttl"),
        (FSYNC, {"aof_enabled": False}, "appendonly is no"),
        (FSYNC, {"appendfsync": "everysec", "version": (7, 0)}, "appendfsync is everysec"),
        (REPLICATED, {"aof_enabled": False}, "appendonly is no"),
        (REPLICATED, {"replicas": 0}, "no slave is online"),
        (REPLICATED, {"version": (7, 0)}, "redis_version is 7.0"),
    ],
)
def test_server_below_the_level_is_refused(
    level: deployment.Durability, changes: dict[str, Any], message: str
) -> None:
    """The message names the setting and its value."""
    with pytest.raises(errors.StoreBelowDurability) as caught:
        redis_durability.judge(server(**changes), level)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("level", "changes", "barrier"),
    [
        (MEMORY, {"aof_enabled": False, "maxmemory_policy": "allkeys-lru"}, None),
        (FSYNC, {"version": (7, 0), "maxmemory_bytes": 1}, None),
        (FSYNC, {}, None),
        (FSYNC, {"appendfsync": "everysec"}, ("WAITAOF", 1, 0)),
        (FSYNC, {"appendfsync": None}, ("WAITAOF", 1, 0)),
        (REPLICATED, {}, ("WAITAOF", 1, 1)),
    ],
)
def test_level_decides_how_writes_wait(
    level: deployment.Durability, changes: dict[str, Any], barrier: tuple[str, int, int] | None
) -> None:
    """Writes wait for disks exactly where the server does not do so by itself."""
    found = redis_durability.judge(server(**changes), level).barrier
    assert (found and found.commands[-1][:3]) == barrier


def test_unknown_setting_is_noted() -> None:
    """Where CONFIG is forbidden the notes say what is not known."""
    for version in ((7, 0), (7, 2)):
        verdict = redis_durability.judge(server(appendfsync=None, version=version), FSYNC)
        assert "CONFIG is forbidden" in verdict.notes[0]


async def test_real_server_is_judged(open_store: Open, own_store_server: valkey.Server) -> None:
    """What a real server says is understood, before and after its file is switched off."""
    assert await open_store(FSYNC).check_durability() == ()
    with pytest.raises(errors.StoreBelowDurability, match="no slave is online"):
        await open_store(REPLICATED).check_durability()
    own_store_server.configure("appendonly", "no")
    with pytest.raises(errors.StoreBelowDurability, match="CONFIG SET appendonly yes"):
        await open_store(FSYNC).check_durability()
    assert await open_store(MEMORY).check_durability() == ()


async def test_first_write_judges_too(open_store: Open, own_store_server: valkey.Server) -> None:
    """A process that never asked does not write to a store below the level."""
    own_store_server.configure("appendonly", "no")
    store = open_store(FSYNC)
    with pytest.raises(errors.StoreBelowDurability):
        await store.sessions.create(store_samples.new(store_samples.key()))


async def test_forbidden_config_is_noted(open_store: Open, own_store_server: valkey.Server) -> None:
    """A user without the right to CONFIG gets notes, and writes that wait."""
    assert own_store_server.call("ACL", "SETUSER", "default", "-config") == "+OK"
    store = open_store(FSYNC)
    (note,) = await store.check_durability()
    assert "CONFIG is forbidden" in note
    head = await store_samples.owned(store)
    assert (await store.sessions.commit(store_samples.commit(head))).version == 2


async def test_writes_wait_for_the_replica(
    open_store: Open, own_store_server: valkey.Server, tmp_path: pathlib.Path
) -> None:
    """At level replicated a write that the replica did not confirm is neither told nor shown."""
    head = await store_samples.owned(open_store(FSYNC))
    own_store_server.configure("repl-diskless-sync-delay", "0")
    with valkey.Server(tmp_path / "replica") as replica:
        replica.call("REPLICAOF", "127.0.0.1", str(own_store_server.port))
        store = open_store(REPLICATED)
        await eventually.assert_eventually(lambda: _reaches(store))
        await store.sessions.commit(store_samples.commit(head))
        head = await store.sessions.head(head.key)
    store._wire.barrier = redis_wire.Barrier(local=1, replicas=1, timeout_ms=50)
    with pytest.raises(errors.OutcomeUnknown, match="confirmed"):
        await store.sessions.commit(store_samples.commit(head))
    reads: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: store.sessions.head(head.key),
        lambda: store.sessions.page(head.key.tenant, after="", limit=1),
        lambda: store.sessions.hot(head.key, after=0, limit=1),
        lambda: store.sessions.outcome(head.key, "r-1"),
    )
    for read in reads:
        with pytest.raises(errors.StoreUnavailable, match="confirmed"):
            await read()
    # A claim waits unless its owner does so later.
    claim = store_samples.claim(head)
    with pytest.raises(errors.StoreUnavailable, match="confirmed"):
        await store.sessions.acquire(claim)
    assert (await store.sessions.acquire(claim, durable=False)).head.nonce == claim.nonce
    with pytest.raises(errors.StoreUnavailable, match="confirmed"):
        await store.sessions.flush()
    # Watchers look once a second, and who finds nothing has nothing to wait for.
    assert not (await store.sessions.hot(head.key, after=99, limit=1)).events
    # An owner reads what it has waited for, once a turn perhaps.
    store._wire.reads_wait = False
    for read in reads:
        await read()
    store._wire.barrier = None
    assert (await store.sessions.head(head.key)).version == head.version + 1


async def _reaches(store: redis_store.RedisStore) -> bool:
    try:
        await store.check_durability()
    except errors.StoreBelowDurability:
        return False
    return True
