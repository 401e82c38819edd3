"""Lives of one session as Hypothesis makes them up, and two defects that it has to find in them."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import session_machine
from hypothesis import stateful

from torpor import limits
from torpor.actors import ownership
from torpor.storage import history, records
from torpor.testing import valkey


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a short history meets; no message is given up, however often a process dies."""
    monkeypatch.setattr(limits, "HOT_EVENTS_MAX", 12)
    monkeypatch.setattr(limits, "HOT_EVENTS_KEPT", 3)
    monkeypatch.setattr(limits, "HOT_EVENTS_ASLEEP_MAX", 6)
    monkeypatch.setattr(limits, "FRUITLESS_CLAIMS_MAX", 1_000)
    monkeypatch.setattr(ownership, "RESOLVE_PAUSE_S", 0.001)


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[valkey.Server]:
    """A server for all histories of a run."""
    with valkey.Server(tmp_path / "store") as started:
        yield started


def _run(server: valkey.Server, **how: Any) -> None:
    on_server = type("OnServer", (session_machine.Sessions,), {"server": server})
    settings = hypothesis.settings(
        max_examples=30,
        stateful_step_count=40,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        **how,
    )
    stateful.run_state_machine_as_test(on_server, settings=settings)


@pytest.mark.usefixtures("small")
def test_no_history_breaks_a_promise(server: valkey.Server) -> None:
    """However sends, deaths, takeovers, lost answers and restarts follow each other, all holds."""
    _run(server, derandomize="CI" in os.environ)


async def _believe(owned: ownership.Ownership, commit: records.Commit) -> records.Committed:
    return records.Committed(version=commit.expected_version + 1, next_seq=0)


async def _forget(past: history.History, since_ms: int) -> dict[str, records.Outcome]:
    return {}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("owner", "method", "replacement"),
    [(ownership.Ownership, "_resolve", _believe), (history.History, "recent_outcomes", _forget)],
)
def test_broken_owner_is_found(
    server: valkey.Server,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    replacement: object,
) -> None:
    """Owners that take a lost commit for done, or forget what is only in cold history."""
    monkeypatch.setattr(owner, method, replacement)
    # The first history that fails will do, however long.
    with pytest.raises((AssertionError, hypothesis.errors.Flaky)):
        _run(server, derandomize=True, phases=[hypothesis.Phase.generate])
