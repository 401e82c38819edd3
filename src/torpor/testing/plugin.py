"""Fixtures for tests against torpor, as a pytest plugin. They cost nothing until they are used."""

import pathlib
from collections.abc import Iterator

import pytest

from torpor.testing import clock, valkey


@pytest.fixture
def fake_clock() -> clock.FakeClock:
    """A clock that stands still until the test moves it."""
    return clock.FakeClock()


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkey.Server]:
    """A real store server for the whole run: use a tenant of your own, do not kill it."""
    with valkey.Server(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture
def own_store_server(tmp_path: pathlib.Path) -> Iterator[valkey.Server]:
    """A real store server for one test, which may kill and configure it."""
    with valkey.Server(tmp_path / "store") as server:
        yield server
