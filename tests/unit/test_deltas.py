"""Provisional pieces on their way to watchers."""

import asyncio

import pytest

from torpor import errors
from torpor.actors import deltas
from torpor.storage import records
from torpor.testing.clock import FakeClock
from torpor.testing.eventually import assert_eventually

KEY = records.SessionKey("acme", "chat")


class Feed:
    """Notes what is published; fails as often as it is told to."""

    def __init__(self) -> None:
        self.published: list[str] = []
        self.failures = 0

    async def publish_delta(self, key: records.SessionKey, delta: bytes) -> None:
        """Note it, or fail."""
        assert key == KEY
        if self.failures:
            self.failures -= 1
            raise errors.StoreUnavailable
        self.published.append(delta.decode())


@pytest.fixture
def feed() -> Feed:
    """A feed."""
    return Feed()


async def _gathered(clock: FakeClock) -> None:
    """Let a gathering time pass, once somebody waits for it."""
    await assert_eventually(lambda: _asleep(clock))
    await clock.advance(deltas.GATHER_S)
    await asyncio.sleep(0)


async def _asleep(clock: FakeClock) -> bool:
    return clock.sleepers == 1


async def test_pieces_are_gathered_in_order(feed: Feed, fake_clock: FakeClock) -> None:
    """What comes within one gathering time, from any thread, is published as one piece."""
    gathering = deltas.Deltas(feed, KEY, fake_clock)
    for piece in ("Hey, ", "hello ", "you"):
        await asyncio.to_thread(gathering.add_from_any_thread, piece)
    await _gathered(fake_clock)
    assert feed.published == ["Hey, hello you"]
    gathering.add_from_any_thread("!")
    await _gathered(fake_clock)
    await _gathered_nothing_more(fake_clock)
    assert feed.published == ["Hey, hello you", "!"]


async def test_newest_is_kept_when_too_much_comes(feed: Feed, fake_clock: FakeClock) -> None:
    """Beyond the bound the oldest is dropped."""
    gathering = deltas.Deltas(feed, KEY, fake_clock)
    gathering.add_from_any_thread("old" + "x" * deltas.GATHERED_CHARS_MAX)
    gathering.add_from_any_thread("new")
    await _gathered(fake_clock)
    (published,) = feed.published
    assert len(published) == deltas.GATHERED_CHARS_MAX
    assert published.startswith("x")
    assert published.endswith("xnew")


async def test_store_that_is_away_costs_only_the_piece(feed: Feed, fake_clock: FakeClock) -> None:
    """A piece that cannot be published is lost in silence; the next one goes out."""
    feed.failures = 1
    gathering = deltas.Deltas(feed, KEY, fake_clock)
    gathering.add_from_any_thread("lost")
    await _gathered(fake_clock)
    gathering.add_from_any_thread("found")
    await _gathered(fake_clock)
    assert feed.published == ["found"]


async def _gathered_nothing_more(clock: FakeClock) -> None:
    await clock.advance(10 * deltas.GATHER_S)
    assert clock.sleepers == 0
