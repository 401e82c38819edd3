"""Hints of where sessions are: bounded, and never older than what is known."""

from torpor.actors import protocol
from torpor.router import directory
from torpor.storage import records


def key(name: str) -> records.SessionKey:
    """Return a session's key."""
    return records.SessionKey("acme", name)


def located(epoch: int, version: int = 1) -> directory.Located:
    """Return an activation."""
    owner = records.Owner(node="n", incarnation="i", actor=f"a{epoch}")
    seat = protocol.Seat(key=key("a"), epoch=epoch, nonce=f"n{epoch}", owner=owner)
    return directory.Located(seat=seat, version=version)


def test_the_hint_used_longest_ago_goes_first() -> None:
    """A full directory keeps what is in use."""
    hints = directory.Directory(hints_max=2)
    for name in ("a", "b"):
        hints.put(key(name), located(1))
    hints.get(key("a"))
    hints.put(key("c"), located(1))
    assert hints.get(key("b")) is None
    assert hints.get(key("a")) == hints.get(key("c")) == located(1)


def test_an_older_hint_does_not_replace_a_newer_one() -> None:
    """Answers may arrive out of order."""
    hints = directory.Directory()
    hints.put(key("a"), located(2, version=5))
    hints.put(key("a"), located(1, version=9))
    hints.put(key("a"), located(2, version=4))
    assert hints.get(key("a")) == located(2, version=5)
    hints.put(key("a"), located(2, version=6))
    assert hints.get(key("a")) == located(2, version=6)


def test_only_the_epoch_that_failed_is_forgotten() -> None:
    """A caller that comes late with bad news of an old owner does not spoil the new one."""
    hints = directory.Directory()
    hints.put(key("a"), located(2))
    hints.forget(key("a"), 1)
    assert hints.get(key("a")) == located(2)
    hints.forget(key("a"), 2)
    assert hints.get(key("a")) is None
