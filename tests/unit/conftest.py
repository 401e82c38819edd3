"""Fixtures that several unit tests share."""

import pathlib

import pytest


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return an empty workspace."""
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"
