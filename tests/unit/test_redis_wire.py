"""The wire bounds its connections and its patience, and Redis holds sleeping sessions small."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from torpor import errors, ids
from torpor.actors import protocol
from torpor.storage import keys, records, redis_store, redis_wire
from torpor.testing import store_samples, valkey


@pytest.fixture
async def store(store_server: valkey.Server) -> AsyncIterator[redis_store.RedisStore]:
    """Yield a store on the run's server."""
    store = redis_store.open(store_samples.deployment_at(store_server.url))
    yield store
    await store.close()


async def test_connections_are_bounded(own_store_server: valkey.Server) -> None:
    """More calls at once than connections wait for their turn."""
    wire = redis_wire.Wire(own_store_server.url, connections_max=2)
    replies = await asyncio.gather(*(wire.read(("ECHO", str(i))) for i in range(50)))
    assert replies == [[str(i).encode()] for i in range(50)]
    (clients,) = await wire.read(("CLIENT", "LIST"))
    assert len(clients.splitlines()) == 2
    await wire.close()


async def test_silent_server_is_given_up(own_store_server: valkey.Server) -> None:
    """A server that does not answer in time leaves the outcome open; nobody waits for ever."""
    wire = redis_wire.Wire(own_store_server.url, connections_max=1, answer_timeout_s=0.2)
    await wire.read(("PING",))
    assert own_store_server.call("CLIENT", "PAUSE", "60000", "ALL") == "+OK"
    calls = [wire.read(("PING",), lost=errors.OutcomeUnknown) for _ in range(2)]
    first, second = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, errors.OutcomeUnknown)
    # In line for the one connection: it got it at the last moment, or did not.
    assert isinstance(second, errors.Unavailable)
    await wire.close()


async def test_lost_connections_are_counted(own_store_server: valkey.Server) -> None:
    """Who talks to a server again after it was away can know that it may be another one."""
    wire = redis_wire.Wire(own_store_server.url, connections_max=1)
    await wire.read(("PING",))
    await wire.read(("PING",))
    assert wire.connections_lost == 0
    own_store_server.kill()
    for _ in range(2):
        with pytest.raises(errors.StoreUnavailable):
            await wire.read(("PING",))
    own_store_server.start()
    await wire.read(("PING",))
    assert wire.connections_lost == 1
    await wire.close()


async def test_head_of_a_sleeping_session_is_small(store: redis_store.RedisStore) -> None:
    """The head stays in the compact form of a hash, and below 600 bytes.

    It never comes back to that form, so no owner may have had too long a name, either.
    """
    node = "ab" * 28
    owner = msgspec.structs.replace(
        store_samples.OWNER,
        node=node,
        incarnation=ids.nonce(),
        actor=protocol.slot_actor_name(node, ids.nonce()),
    )
    head = await store.sessions.create(store_samples.new(store_samples.key()))
    claim = store_samples.claim(head, owner=owner)
    head = (await store.sessions.acquire(claim)).head
    ref = records.CheckpointRef(
        version=2, epoch=1, origin="chat", state="b3-" + "ab" * 32, state_bytes=50_000, inline=False
    )
    usage = records.Usage(turns=3, cpu_ms=1_000, busy_ms=2_000, rss_bytes=1 << 26)
    await store.sessions.commit(
        store_samples.commit(head, checkpoint=ref, manifest="b3-" + "cd" * 32, usage=usage)
    )
    assert await store.sessions.release(
        head.key, epoch=head.epoch, nonce=head.nonce, expected_version=head.version + 1
    )
    name = keys.head(head.key)
    encoding, size_bytes = await store._wire.read(
        ("OBJECT", "ENCODING", name), ("MEMORY", "USAGE", name)
    )
    assert encoding == b"listpack"
    assert size_bytes <= 600


async def test_keys_of_ownership_never_expire(
    store: redis_store.RedisStore, store_server: valkey.Server
) -> None:
    """Neither a head nor a tombstone has a time to live."""
    head = await store_samples.owned(store)
    assert store_server.call("TTL", keys.head(head.key)) == ":-1"
    await store.sessions.delete(head.key)
    assert store_server.call("TTL", keys.head(head.key)) == ":-1"
    for gone in (keys.hot, keys.inbox, keys.dedup, keys.checkpoints):
        assert store_server.call("EXISTS", gone(head.key)) == ":0"
