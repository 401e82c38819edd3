"""The thread that keeps a node's lease."""

import threading

import pytest

from torpor import errors
from torpor.actors import lease
from torpor.storage import memory_store

TTL_MS = 50
#: A thread on a busy machine does in this time what it does in milliseconds elsewhere.
PATIENCE_S = 20.0


class Renewals:
    """A store's nodes, with a script of answers: True, False, or an error; then True."""

    def __init__(self, *script: bool | Exception) -> None:
        self._script = list(script)
        self.asked = 0
        self.enough = threading.Event()
        #: How many renewals are enough.
        self.wanted = len(script) + 2

    async def renew_lease(self, node: str, incarnation: str, *, ttl_ms: int) -> bool:
        """Answer as scripted."""
        assert (node, incarnation, ttl_ms) == ("node", "inc", TTL_MS)
        self.asked += 1
        if self.asked >= self.wanted:
            self.enough.set()
        answer = self._script.pop(0) if self._script else True
        if isinstance(answer, Exception):
            raise answer
        return answer


def _keeper(
    renewals: Renewals, *, hangs: bool = False
) -> tuple[lease.LeaseKeeper, threading.Event]:
    lapsed = threading.Event()

    def open_store() -> memory_store.MemoryStore:
        opened = memory_store.MemoryStore()
        opened.nodes = renewals
        return opened

    keeper = lease.LeaseKeeper(
        open_store,
        node="node",
        incarnation="inc",
        ttl_ms=TTL_MS,
        on_lapse=lapsed.set,
        knock=lambda: None if hangs else keeper.answer(),
        silence_max_s=0.0 if hangs else lease.SILENCE_MAX_S,
    )
    keeper.start()
    return keeper, lapsed


def _joined(keeper: lease.LeaseKeeper) -> bool:
    keeper._thread.join(PATIENCE_S)
    return not keeper._thread.is_alive()


def test_renews_until_stopped() -> None:
    """The lease is renewed again and again; stopped, the thread ends and nothing has lapsed."""
    renewals = Renewals()
    keeper, lapsed = _keeper(renewals)
    assert renewals.enough.wait(PATIENCE_S)
    keeper.stop()
    assert _joined(keeper)
    assert not lapsed.is_set()


def test_store_that_is_away_is_no_lapse() -> None:
    """Renewals that fail are tried again: only the store's own word ends the lease."""
    renewals = Renewals(errors.StoreUnavailable(), errors.StoreReadOnly(), True)
    keeper, lapsed = _keeper(renewals)
    assert renewals.enough.wait(PATIENCE_S)
    assert not lapsed.is_set()
    keeper.stop()
    assert _joined(keeper)


def test_lapsed_lease_is_never_renewed_again() -> None:
    """Told that the lease is gone, the keeper says so once and ends."""
    renewals = Renewals(True, False)
    keeper, lapsed = _keeper(renewals)
    assert lapsed.wait(PATIENCE_S)
    assert _joined(keeper)
    assert renewals.asked == 2


def test_an_agent_that_hangs_loses_its_lease(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody answers the knock: the lease is renewed no more, so that others may take over."""
    renewals = Renewals()
    keeper, lapsed = _keeper(renewals, hangs=True)
    assert lapsed.wait(PATIENCE_S)
    assert _joined(keeper)
    assert renewals.asked == 0
    assert "agent hangs" in caplog.text


def test_what_nobody_expected_ends_the_term(caplog: pytest.LogCaptureFixture) -> None:
    """An error that is none of ours ends the thread, and the node learns that nobody renews."""
    keeper, lapsed = _keeper(Renewals(True, RuntimeError("odd")))
    assert lapsed.wait(PATIENCE_S)
    assert _joined(keeper)
    assert "lease lost" in caplog.text
