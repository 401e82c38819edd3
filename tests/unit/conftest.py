"""Fixtures that several unit tests share."""

import pathlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from torpor.storage import redis_store, storage_proof
from torpor.testing import damage, store_samples, valkey
from torpor.testing.past import Past
from torpor.testing.stored_world import StoredWorld


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return an empty workspace."""
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


@pytest.fixture
async def place(
    store_server: valkey.Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[damage.Place]:
    """Yield a place in which sessions live, crash and are damaged."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(damage.Keeper, "told", [])
    async with damage.place(store_server, tmp_path) as here:
        yield here


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkey.Server]:
    """A real store of these tests alone, since a check looks at all of it."""
    with valkey.Server(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
async def empty_world(server: valkey.Server, tmp_path: pathlib.Path) -> AsyncIterator[StoredWorld]:
    """An empty deployment."""
    assert server.call("FLUSHALL") == "+OK"
    store = redis_store.open(store_samples.deployment_at(server.url))
    await store.catalog.create_tenant("acme", at_ms=0)
    made = StoredWorld(store, tmp_path / "storage")
    await storage_proof.establish(store.catalog, made.blob_store)
    yield made
    await store.close()


@pytest.fixture
def past(own_store_server: valkey.Server) -> Callable[[], Past]:
    """Makes a `Past` of the test's own server."""
    return lambda: Past(own_store_server)


@pytest.fixture
async def own_store(own_store_server: valkey.Server) -> AsyncIterator[redis_store.RedisStore]:
    """A store on a server of the test's own."""
    opened = redis_store.open(store_samples.deployment_at(own_store_server.url))
    yield opened
    await opened.close()
