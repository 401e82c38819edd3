"""Lives that a fork server plays before it forks."""

import pathlib
import sys
import threading
from typing import Any

import pytest

from torpor import errors
from torpor.actors import rehearsal, residence
from torpor.actors.ray_compat import fork_server


def test_nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Threads, descriptors, streams, folders: all as before, so that the process can be forked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearsal.tempfile, "tempdir", str(tmp_path))

    def found() -> tuple[Any, ...]:
        folders = pathlib.Path.cwd(), list(tmp_path.glob("torpor-*/*"))
        return set(threading.enumerate()), fork_server.descriptors(), sys.stdout, *folders

    before = found()
    rehearsal.rehearse()
    # The folder of sockets stays, and is empty.
    (sockets,) = tmp_path.glob("torpor-*/lanes")
    assert not list(sockets.iterdir())
    sockets.rmdir()
    assert found() == before


def test_all_of_a_life_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns are committed and the session leaves in order, as often as the interpreter needs."""
    committed, left = [], []
    commit, leave = residence.Residence._commit, residence.Residence._leave

    async def committing(self: residence.Residence, change: Any) -> Any:
        done = await commit(self, change)
        committed.append(done.version)
        return done

    async def leaving(self: residence.Residence) -> Any:
        left.append(1)
        return await leave(self)

    monkeypatch.setattr(residence.Residence, "_commit", committing)
    monkeypatch.setattr(residence.Residence, "_leave", leaving)
    rehearsal.rehearse()
    # Version 1 is the session's creation.
    assert committed == list(range(2, rehearsal.LIVES + 2))
    assert len(left) == rehearsal.LIVES


def test_a_life_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sessions cannot live nothing is forked, and the log has the reason."""

    async def refuse(*_: Any) -> Any:
        raise errors.StorageFull("no room")

    monkeypatch.setattr(residence.Residence, "_commit", refuse)
    with pytest.raises(errors.StorageFull, match="no room"):
        rehearsal.rehearse()


def test_a_rehearsal_that_fails_costs_no_forks(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Children are forked as well, and are slower; the log says why."""

    def fail() -> None:
        raise OSError("no room")

    monkeypatch.setattr(rehearsal, "rehearse", fail)
    monkeypatch.setattr(fork_server, "THREAD_END_S", 0.0)
    fork_server.warm_up()
    assert "no room" in capfd.readouterr().err
