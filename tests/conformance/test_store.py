"""Every store that torpor ships passes the conformance suite."""

import time
from collections.abc import AsyncIterator, Iterator

import pytest

from torpor.storage import memory_store, redis_store
from torpor.testing import conformance, store_samples, valkey


async def _opened(server: valkey.Server) -> AsyncIterator[redis_store.RedisStore]:
    store = redis_store.open(store_samples.deployment_at(server.url))
    assert await store.check_durability() == ()
    yield store
    await store.close()


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkey.Server]:
    """Yield a server of the binary that the environment names."""
    with valkey.Server(tmp_path_factory.mktemp("redis"), valkey.plain()) as server:
        yield server


@pytest.fixture(scope="module")
def cluster_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkey.Server]:
    """Yield a cluster of one server that holds all slots."""
    settings = {"cluster-enabled": "yes", "cluster-port": str(valkey.free_port())}
    with valkey.Server(tmp_path_factory.mktemp("cluster"), settings=settings) as server:
        assert server.call("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == "+OK"
        deadline_s = time.monotonic() + valkey.START_TIMEOUT_S
        while server.call("GET", "anything") != "$-1":
            assert time.monotonic() < deadline_s, "the cluster did not come up"
            time.sleep(0.02)
        yield server


class TestMemory(conformance.StoreConformance):
    """The store in memory."""

    @pytest.fixture
    def store(self) -> memory_store.MemoryStore:
        """Return a new store."""
        return memory_store.MemoryStore()


class TestValkey(conformance.StoreConformance):
    """The embedded server, which syncs every write."""

    @pytest.fixture
    async def store(self, store_server: valkey.Server) -> AsyncIterator[redis_store.RedisStore]:
        """Yield a store on the run's server."""
        async for store in _opened(store_server):
            yield store


@pytest.mark.redis_server
@pytest.mark.skipif(valkey.plain() is None, reason=f"{valkey.SERVER_VARIABLE} names no server")
class TestPlainRedis(conformance.StoreConformance):
    """A plain Redis, as old as torpor supports."""

    @pytest.fixture
    async def store(self, plain_server: valkey.Server) -> AsyncIterator[redis_store.RedisStore]:
        """Yield a store on it."""
        async for store in _opened(plain_server):
            yield store


class TestCluster(conformance.StoreConformance):
    """A server in cluster mode refuses what would touch two slots at once."""

    @pytest.fixture
    async def store(self, cluster_server: valkey.Server) -> AsyncIterator[redis_store.RedisStore]:
        """Yield a store on it."""
        async for store in _opened(cluster_server):
            yield store
