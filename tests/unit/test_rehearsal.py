"""Lives that a fork server plays before it forks."""

import asyncio
import gc
import pathlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from torpor import errors
from torpor.actors import agent_thread, recovery, rehearsal, residence
from torpor.actors.ray_compat import fork_server
from torpor.storage import memory_sessions


@pytest.fixture
def traces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> Callable[[], tuple[object, ...]]:
    """Return what shows traces: threads, descriptors, streams, folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearsal.tempfile, "tempdir", str(tmp_path))
    # The test's process has threads of its own.
    monkeypatch.setattr(fork_server, "THREAD_END_S", 0.0)
    # Of other tests.
    gc.collect()

    def found() -> tuple[object, ...]:
        # The folder of sockets stays, and is empty.
        left = [path for path in tmp_path.glob("torpor-*/*") if path.name != "lanes"]
        left += tmp_path.glob("torpor-*/lanes/*")
        return (
            set(threading.enumerate()),
            fork_server.descriptors(),
            sys.stdout,
            left,
            pathlib.Path.cwd(),
        )

    return found


def test_nothing_is_left(traces: Callable[[], object]) -> None:
    """All is as before, so that the process can be forked."""
    before = traces()
    fork_server.warm_up()
    assert traces() == before


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


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (memory_sessions.MemorySessions, "acquire"),
        (recovery.Waking, "_bring_back"),
        (agent_thread.AgentThread, "wake"),
        (residence.Residence, "_commit"),
        (residence.Residence, "_leave"),
    ],
)
def test_a_life_that_fails_is_told_and_leaves_nothing(
    traces: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: type,
    step: str,
) -> None:
    """The reason goes to the log, and the process can be forked all the same."""

    async def refuse(*_: Any, **__: Any) -> Any:
        raise errors.StorageFull("no room")

    monkeypatch.setattr(kind, step, refuse)
    before = traces()
    fork_server.warm_up()
    assert traces() == before
    assert "no room" in capfd.readouterr().err


def test_lives_that_take_too_long_are_left_out(
    traces: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the first fork does not wait for the last life."""

    async def hang(*_: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(agent_thread.AgentThread, "wake", hang)
    monkeypatch.setattr(rehearsal, "LIVES_TIMEOUT_S", 0.05)
    before = traces()
    fork_server.warm_up()
    assert traces() == before
