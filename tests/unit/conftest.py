"""Fixtures that several unit tests share."""

import pathlib
import sys
from collections.abc import AsyncIterator

import pytest

from torpor.testing import damage, valkey


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
