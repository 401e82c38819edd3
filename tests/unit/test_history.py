"""History as one sequence, whatever lies hot or cold and whenever the boundary moves."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from torpor import errors, limits, messages
from torpor.storage import history, local_blobs, records, segments

KEY = records.SessionKey("acme", "s1")


def event(seq: int, type_: str = "user.message", **data: Any) -> messages.Event:
    """Return one event."""
    return messages.Event(seq=seq, type=type_, data=data, version=seq, at_ms=seq)


def run(first: int, last: int) -> list[messages.Event]:
    """Return plain events of these seqs."""
    return [event(seq) for seq in range(first, last + 1)]


class CountingBlobs(local_blobs.LocalBlobStore):
    """Counts reads."""

    gets = 0

    def get(self, tenant: str, digest: str, *, bytes_max: int) -> bytes:
        """Count, then read."""
        self.gets += 1
        return super().get(tenant, digest, bytes_max=bytes_max)


class FakeSessions:
    """The hot tail of one session; `before_read` runs before each read, as an owner may."""

    def __init__(self, blobs: CountingBlobs, events: list[messages.Event]) -> None:
        self.blobs = blobs
        self.events = events
        self.hot_from = 1
        self.cold_index = ""
        self.before_read: Callable[[], None] = lambda: None
        self.reads = 0

    def seal(self, new_hot_from: int) -> None:
        """Move the boundary."""
        cold = self.events[self.hot_from - 1 : new_hot_from - 1]
        self.cold_index = segments.seal(self.blobs, "acme", self.cold_index, cold)
        self.hot_from = new_hot_from

    async def hot(self, key: records.SessionKey, *, after: int, limit: int) -> records.HotPage:
        """Read as the store does."""
        assert key == KEY
        assert 0 < limit <= limits.PAGE_EVENTS_MAX
        self.before_read()
        self.reads += 1
        hot = [item for item in self.events if item.seq >= self.hot_from and item.seq > after]
        return records.HotPage(
            events=hot[:limit],
            hot_from=self.hot_from,
            next_seq=len(self.events) + 1,
            cold_index=self.cold_index,
        )


class World:
    """A session of some events, and a reader of it."""

    def __init__(self, root: pathlib.Path) -> None:
        self.blobs = CountingBlobs(root)
        self.sessions = FakeSessions(self.blobs, [])
        self.history = history.History(self.sessions, self.blobs, KEY)  # type: ignore[arg-type]

    def fill(self, events: list[messages.Event], *seals: int) -> None:
        """Give the session these events, sealed up to each of `seals`."""
        self.sessions.events = events
        for new_hot_from in seals:
            self.sessions.seal(new_hot_from)
        self.blobs.gets = 0


@pytest.fixture
def world(tmp_path: pathlib.Path) -> World:
    """An empty session."""
    return World(tmp_path)


async def all_pages(world: World, limit: int, **options: Any) -> list[messages.Event]:
    """Follow `next_after` to the end."""
    found: list[messages.Event] = []
    after: int | None = 0
    while after is not None:
        page = await world.history.page(after=after, limit=limit, **options)
        assert len(page.events) <= limit
        assert page.next_after is None or page.next_after > after
        found += page.events
        after = page.next_after
    return found


@pytest.mark.parametrize("seals", [(), (2,), (100,), (241, 481, 650), (701,)])
@pytest.mark.parametrize("limit", [7, 240, 500])
async def test_pages_are_gap_free(world: World, seals: tuple[int, ...], limit: int) -> None:
    """Whatever is cold, and whatever the page's size, all events come once and in order."""
    world.fill(run(1, 700), *seals)
    assert await all_pages(world, limit) == run(1, 700)


@pytest.mark.parametrize(("asked", "given"), [(-1, 1), (0, 1), (10_000, limits.PAGE_EVENTS_MAX)])
async def test_a_page_is_bounded(world: World, asked: int, given: int) -> None:
    """A page holds at least one event and never more than the limit of all pages."""
    world.fill(run(1, 700), 101)
    page = await world.history.page(after=-5, limit=asked)
    assert page == history.Page(events=run(1, given), next_after=given)


async def test_an_empty_history_has_an_end(world: World) -> None:
    """No events: an empty page, an empty tail, nothing to read."""
    assert await world.history.page() == history.Page(events=[], next_after=None)
    assert await world.history.tail() == []
    assert await world.history.read(0, 10) == []


async def test_a_boundary_that_moves_between_reads_is_no_gap(world: World) -> None:
    """The owner seals before every read; a follower sees every event once."""
    world.fill(run(1, 400))
    boundaries = iter(range(20, 400, 60))

    def seal_more() -> None:
        boundary = next(boundaries, None)
        if boundary is not None:
            world.sessions.seal(boundary)

    world.sessions.before_read = seal_more
    assert await all_pages(world, 25) == run(1, 400)


async def test_read_follows_and_stops_at_the_end(world: World) -> None:
    """Watchers read from where they are; past the end there is nothing."""
    world.fill(run(1, 1_200), 1_101)
    assert await world.history.read(1_000, 2_000) == run(1_001, 1_200)
    assert await world.history.read(0, 1_150) == run(1, 1_150)
    assert await world.history.read(1_200, 5) == []


async def test_an_event_that_is_nowhere_is_a_gap(world: World) -> None:
    """Lost hot events, or a cold index that ends too soon, raise instead of being skipped."""
    world.fill(run(1, 30), 11)
    world.sessions.events = run(1, 14) + run(16, 31)
    with pytest.raises(errors.HistoryGap, match="event 15 of acme/s1"):
        await world.history.read(12, 10)
    world.sessions.events = run(1, 30)
    world.sessions.hot_from = 13
    with pytest.raises(errors.HistoryGap, match="event 11 of acme/s1"):
        await world.history.page()
    world.sessions.cold_index = ""
    with pytest.raises(errors.HistoryGap, match="event 1 of acme/s1"):
        await world.history.page()


async def test_hot_events_that_vanished_are_a_gap(world: World) -> None:
    """An empty answer before the end is not taken for the end."""

    async def hot(key: records.SessionKey, *, after: int, limit: int) -> records.HotPage:
        return records.HotPage(events=[], hot_from=1, next_seq=31, cold_index="")

    world.sessions.hot = hot  # type: ignore[method-assign]
    with pytest.raises(errors.HistoryGap, match="event 6 of acme/s1"):
        await world.history.page(after=5)


async def test_a_page_is_filtered_by_type(world: World) -> None:
    """Only the types asked for, across hot and cold, in order."""
    events = [event(seq, "a.b" if seq % 50 == 0 else "c.d") for seq in range(1, 1_001)]
    world.fill(events, 601)
    expected = [item for item in events if item.type == "a.b"]
    assert await all_pages(world, 3, types=["a.b"]) == expected
    assert await all_pages(world, 500, types={"a.b", "c.d"}) == events


async def test_a_filter_that_finds_nothing_is_bounded(world: World) -> None:
    """A page gives up after its bound and says where to go on."""
    world.fill(run(1, history.SCAN_EVENTS_MAX + 700))
    page = await world.history.page(types=["no.such"])
    assert page == history.Page(events=[], next_after=history.SCAN_EVENTS_MAX)
    page = await world.history.page(after=history.SCAN_EVENTS_MAX, types=["no.such"])
    assert page == history.Page(events=[], next_after=None)


@pytest.mark.parametrize("seals", [(), (241, 481), (600,), (601,)])
@pytest.mark.parametrize("limit", [1, 20, 300, 500])
async def test_tail_is_the_newest(world: World, seals: tuple[int, ...], limit: int) -> None:
    """The newest events, oldest first, from hot and cold."""
    world.fill(run(1, 600), *seals)
    assert await world.history.tail(limit) == run(600 - limit + 1, 600)


async def test_tail_is_filtered_and_bounded(world: World) -> None:
    """The newest of a type; what lies further back than the bound is not looked for."""
    bound = history.SCAN_EVENTS_MAX
    world.fill([event(seq, f"n.{seq % 300}") for seq in range(1, bound + 400)], bound)
    newest = await world.history.tail(2, types=["n.7"])
    assert [item.seq for item in newest] == [2_107 - 300, 2_107]
    world.sessions.events[300] = event(301, "rare.one")
    assert await world.history.tail(types=["rare.one"]) == []


async def test_cold_blobs_are_read_once_and_not_kept_forever(world: World) -> None:
    """Pages within a segment open it once; the cache stays bounded."""
    world.fill(run(1, 2_400), *range(241, 2_402, 240))
    for _ in range(3):
        for after in range(0, 240, 10):
            await world.history.page(after=after, limit=10)
    assert world.blobs.gets == 2
    assert await all_pages(world, 100) == run(1, 2_400)
    assert world.blobs.gets == 2 + 9
    assert len(world.history._segments) == history.SEGMENTS_CACHED_MAX


def turns(count: int, filler: int) -> list[messages.Event]:
    """Return turns of a message, some output and an answer; each third one fails."""
    events: list[messages.Event] = []
    for turn in range(count):
        data: Mapping[str, str] = {"request_id": f"r{turn}", "body_digest": f"d{turn}"}
        events.append(event(len(events) + 1, "user.message", **data))
        begin = len(events) + 1
        events += [event(seq, "agent.output") for seq in range(begin, begin + filler)]
        kind = "agent.error" if turn % 3 == 0 else "agent.message"
        events.append(event(len(events) + 1, kind, **data))
    return events


async def test_recent_outcomes_come_from_cold_segments(world: World) -> None:
    """Each cold answer since then is known, and of the newest segment each, whatever its age."""
    events = turns(12, 98)
    world.fill(events, 241, 481, 721, 961)
    cold = segments.outcomes_of(events[:960])
    assert await world.history.recent_outcomes(0) == cold
    for since_ms in (300, 500, 801, 961):
        expected = {
            rid: known for rid, known in cold.items() if known.at_ms >= since_ms or known.seq >= 721
        }
        assert await world.history.recent_outcomes(since_ms) == expected


async def test_recent_outcomes_leave_old_segments_closed(world: World) -> None:
    """What is older than asked for costs no read, but for the newest segment."""
    world.fill(turns(1_200, 0), *range(241, 2_402, 240))
    outcomes = await world.history.recent_outcomes(2_391)
    assert sorted(known.seq for known in outcomes.values()) == list(range(2_162, 2_401, 2))
    # The index and one segment.
    assert world.blobs.gets == 2


async def test_recent_outcomes_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past `DEDUP_MAX` the newest are kept, and reading ends."""
    monkeypatch.setattr(limits, "DEDUP_MAX", 100)
    world.fill(turns(1_200, 0), *range(241, 2_402, 240))
    outcomes = await world.history.recent_outcomes(0)
    assert sorted(known.seq for known in outcomes.values()) == list(range(2_202, 2_401, 2))
    assert world.blobs.gets == 2


async def test_recent_outcomes_of_a_hot_history(world: World) -> None:
    """What is hot is remembered elsewhere."""
    world.fill(turns(10, 0))
    assert await world.history.recent_outcomes(0) == {}


async def test_the_answer_of_an_outcome(world: World) -> None:
    """The event at the outcome's seq, hot or cold; none, or one past the end, is an error."""
    events = turns(10, 0)
    world.fill(events, 11)
    for outcome in segments.outcomes_of(events).values():
        assert await world.history.answer(outcome) == events[outcome.seq - 1]
    with pytest.raises(ValueError, match="no event answers"):
        await world.history.answer(msgspec.structs.replace(outcome, seq=0))
    with pytest.raises(errors.HistoryGap, match="event 21"):
        await world.history.answer(msgspec.structs.replace(outcome, seq=21))
