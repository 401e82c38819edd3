"""Hints of where sessions are: bounded, and never older than what is known."""

from torpor.actors import protocol
from torpor.router import directory
from torpor.storage import records


def key(name: str) -> records.SessionKey:
    """Return a session's key."""
    return records.SessionKey("acme", name)


def seat(epoch: int, nonce: str = "") -> protocol.Seat:
    """Return an activation."""
    owner = records.Owner(node="n", incarnation="i", actor=f"a{epoch}")
    return protocol.Seat(key=key("a"), epoch=epoch, nonce=nonce, owner=owner)


def test_the_hint_used_longest_ago_goes_first() -> None:
    """A full directory keeps what is in use."""
    hints = directory.Directory(hints_max=2)
    for name in ("a", "b"):
        hints.put(key(name), seat(1))
    hints.get(key("a"))
    hints.put(key("c"), seat(1))
    assert hints.get(key("b")) is None
    assert hints.get(key("a")) == hints.get(key("c")) == seat(1)


def test_an_older_hint_does_not_replace_a_newer_one() -> None:
    """Answers may arrive out of order."""
    hints = directory.Directory()
    hints.put(key("a"), seat(2))
    hints.put(key("a"), seat(1))
    assert hints.get(key("a")) == seat(2)


def test_of_one_epoch_the_latest_hint_counts() -> None:
    """A store that went back may have granted an epoch twice."""
    hints = directory.Directory()
    hints.put(key("a"), seat(2, "lost"))
    hints.put(key("a"), seat(2, "granted"))
    assert hints.get(key("a")) == seat(2, "granted")


def test_only_the_epoch_that_failed_is_forgotten() -> None:
    """A caller that comes late with bad news of an old owner does not spoil the new one."""
    hints = directory.Directory()
    hints.put(key("a"), seat(2))
    hints.forget(key("a"), 1)
    assert hints.get(key("a")) == seat(2)
    hints.forget(key("a"), 2)
    assert hints.get(key("a")) is None
