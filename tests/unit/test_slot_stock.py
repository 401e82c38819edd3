"""Slots in stock: how many, for whom, and in which order."""

import asyncio

import pytest

from torpor import errors
from torpor.actors import slot_stock
from torpor.testing import clock as clock_double
from torpor.testing import eventually, store_samples

STARTS_MAX = 2
ROOM = 100


class Process:
    """A process on paper."""

    def __init__(self, kind: slot_stock.Kind) -> None:
        self.kind = kind
        self.lives = True
        self.discarded = False

    async def discard(self) -> None:
        """Be gone."""
        self.lives = False
        self.discarded = True


class Starts:
    """Brings processes up when it is let."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.under_way = 0
        self.most_under_way = 0
        self.made: list[Process] = []
        self.error: Exception | None = None
        self.go = asyncio.Semaphore(0)

    async def start(self, kind: slot_stock.Kind) -> Process:
        """Wait to be let."""
        self.begun.append(kind.tenant)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.go.acquire()
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        self.made.append(Process(kind))
        return self.made[-1]

    def let(self, count: int) -> None:
        """Let so many come up."""
        for _ in range(count):
            self.go.release()


@pytest.fixture
async def starts() -> Starts:
    """Return starts that are not let yet."""
    return Starts()


@pytest.fixture
def clock() -> clock_double.FakeClock:
    """Return a clock that stands still."""
    return clock_double.FakeClock()


@pytest.fixture
async def stock(starts: Starts, clock: clock_double.FakeClock) -> slot_stock.Stock[Process]:
    """Return an empty stock."""
    return slot_stock.Stock(starts.start, clock, starts_max=STARTS_MAX)


def kind(tenant: str = "red") -> slot_stock.Kind:
    """Return a tenant's agent."""
    return slot_stock.Kind(tenant=tenant, agent=store_samples.agent_version("notebook", "digest"))


async def filled(stock: slot_stock.Stock[Process], starts: Starts) -> None:
    """Take one, and wait until demand has put others into stock."""
    starts.let(100)
    await stock.take(kind())
    stock.adjust(room=ROOM)

    async def full() -> bool:
        return len(stock) > 0 and stock.starting == 0

    await eventually.assert_eventually(full)


async def settled(stock: slot_stock.Stock[Process]) -> None:
    """Wait until no start is under way."""

    async def still() -> bool:
        return stock.starting == 0

    await eventually.assert_eventually(still)


async def test_an_agent_that_nobody_wakes_has_none(
    stock: slot_stock.Stock[Process], starts: Starts, clock: clock_double.FakeClock
) -> None:
    """Stock comes with the first wake, and goes when there was none for the horizon."""
    stock.adjust(room=ROOM)
    assert starts.begun == []
    await filled(stock, starts)
    await clock.advance(slot_stock.HORIZON_S + 1)
    stock.adjust(room=ROOM)
    assert len(stock) == 0

    async def ended() -> bool:
        return all(made.discarded for made in starts.made[1:])

    await eventually.assert_eventually(ended)


async def test_a_slot_is_handed_out_once(stock: slot_stock.Stock[Process], starts: Starts) -> None:
    """What was taken is not in stock, and another takes its place."""
    await filled(stock, starts)
    taken = [await stock.take(kind()) for _ in range(5)]
    assert len(set(taken)) == 5


async def test_a_dead_slot_is_not_handed_out(
    stock: slot_stock.Stock[Process], starts: Starts
) -> None:
    """A process that ended in stock is passed over, and what it left is removed."""
    await filled(stock, starts)
    dead = list(starts.made[1:])
    for made in dead:
        made.lives = False
    assert (await stock.take(kind())).lives

    async def removed() -> bool:
        return all(made.discarded for made in dead)

    await eventually.assert_eventually(removed)


async def test_a_dead_slot_makes_room_for_another(
    stock: slot_stock.Stock[Process], starts: Starts
) -> None:
    """One that ended behind others in stock is replaced without anybody asking."""
    await filled(stock, starts)
    dead, before = starts.made[-1], len(stock)
    dead.lives = False
    stock.adjust(room=ROOM)

    async def replaced() -> bool:
        return dead.discarded and stock.starting == 0 and len(stock) == before

    await eventually.assert_eventually(replaced)


async def test_tenants_take_turns(stock: slot_stock.Stock[Process], starts: Starts) -> None:
    """A tenant that asks for one does not wait behind another's burst."""
    burst = [asyncio.create_task(stock.take(kind("red"))) for _ in range(10)]
    await asyncio.sleep(0)
    single = asyncio.create_task(stock.take(kind("blue")))
    await asyncio.sleep(0)
    starts.let(STARTS_MAX + 1)
    assert (await single).kind.tenant == "blue"
    assert starts.most_under_way == STARTS_MAX
    assert sum(task.done() for task in burst) == STARTS_MAX
    starts.let(100)
    await asyncio.gather(*burst)


async def test_too_many_waiters_are_refused(
    stock: slot_stock.Stock[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the bound a wake is refused before anything is done."""
    monkeypatch.setattr(slot_stock, "WAITING_MAX", 1)
    waiting = asyncio.create_task(stock.take(kind()))
    await asyncio.sleep(0)
    with pytest.raises(errors.NoCapacity):
        await stock.take(kind())
    waiting.cancel()


async def test_a_tenant_whose_starts_take_long_leaves_a_place(
    stock: slot_stock.Stock[Process], starts: Starts
) -> None:
    """Where there are several tenants, none holds all the places at which slots start."""
    first = asyncio.create_task(stock.take(kind("blue")))
    burst = [asyncio.create_task(stock.take(kind("red"))) for _ in range(10)]
    await asyncio.sleep(0)
    starts.let(1)
    await first
    assert starts.begun == ["blue", "red"]
    again = asyncio.create_task(stock.take(kind("blue")))
    await asyncio.sleep(0)
    assert stock.starting == STARTS_MAX
    await asyncio.sleep(0)
    assert starts.begun == ["blue", "red", "blue"]
    for task in (again, *burst):
        task.cancel()


async def test_a_full_queue_refuses_whoever_fills_it(
    stock: slot_stock.Stock[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant that waits for nothing yet is let in, also when another's burst is at the bound."""
    monkeypatch.setattr(slot_stock, "WAITING_MAX", 4)
    burst = [asyncio.create_task(stock.take(kind("red"))) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(errors.NoCapacity):
        await stock.take(kind("red"))
    other = [asyncio.create_task(stock.take(kind("blue"))) for _ in range(2)]
    await asyncio.sleep(0)
    assert stock.waiting == 6
    with pytest.raises(errors.NoCapacity):
        await stock.take(kind("blue"))
    for task in (*burst, *other):
        task.cancel()


async def test_whoever_leaves_does_not_take_one_along(
    stock: slot_stock.Stock[Process], starts: Starts
) -> None:
    """A wake that is given up leaves its slot to the next."""
    leaving = asyncio.create_task(stock.take(kind()))
    await asyncio.sleep(0)
    staying = asyncio.create_task(stock.take(kind()))
    await asyncio.sleep(0)
    leaving.cancel()
    starts.let(1)
    assert (await staying).lives
    assert stock.waiting == 0


async def test_a_start_that_fails_is_told_to_who_waits(
    stock: slot_stock.Stock[Process], starts: Starts, clock: clock_double.FakeClock
) -> None:
    """The first who waits hears why; the stock tries again after a pause."""
    starts.error = errors.ActivationFailed("broken")
    starts.let(1)
    with pytest.raises(errors.ActivationFailed):
        await stock.take(kind())
    stock.adjust(room=ROOM)
    assert stock.starting == 0
    await clock.advance(slot_stock.FAILED_PAUSE_S + 1)
    stock.adjust(room=ROOM)
    assert stock.starting == STARTS_MAX - 1, "one place is left for whoever comes"


async def test_no_stock_without_room(stock: slot_stock.Stock[Process], starts: Starts) -> None:
    """A node that is full or short of memory gives up its stock; who waits is served."""
    await filled(stock, starts)
    stock.adjust(room=0)
    assert len(stock) == 0
    begun = len(starts.begun)
    assert (await stock.take(kind())).lives
    assert len(starts.begun) == begun + 1


@pytest.mark.parametrize(
    ("memory", "room"),
    [(0.5, 100), (0.75, 100), (0.76, 6), (0.8, 6), (0.81, 6 - slot_stock.DISCARDED_MAX)],
)
def test_room_by_memory(memory: float, room: int) -> None:
    """Short of memory a node ends some at a time; near that it neither adds nor ends any."""
    found = slot_stock.room(6, free=100, memory=memory, memory_high=0.8, memory_low=0.75)
    assert found == room
    assert slot_stock.room(6, free=1, memory=memory, memory_high=0.8, memory_low=0.75) == 1


async def test_stock_follows_demand(stock: slot_stock.Stock[Process], starts: Starts) -> None:
    """The more wakes a minute, the more slots, up to the bound."""
    starts.let(1_000)
    sizes = []

    for takes in (1, 60, 600):
        for _ in range(takes):
            await stock.take(kind())
        for _ in range(slot_stock.STOCK_MAX):
            stock.adjust(room=ROOM)
            await settled(stock)
        sizes.append(len(stock))
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[-1] == slot_stock.STOCK_MAX


async def test_short_of_room_the_fullest_shelf_gives_first(
    starts: Starts, clock: clock_double.FakeClock
) -> None:
    """What nobody wants any more goes before what somebody does, and no more than must."""
    stock = slot_stock.Stock(starts.start, clock, starts_max=slot_stock.STOCK_MAX)
    starts.let(1_000)

    async def fill(tenant: str, takes: int) -> None:
        for _ in range(takes):
            await stock.take(kind(tenant))
        for _ in range(slot_stock.STOCK_MAX):
            stock.adjust(room=ROOM)
            await settled(stock)

    await fill("red", 59)
    await fill("blue", 120)
    begun = len(starts.begun)
    assert [len(shelf.ready) for shelf in stock._shelves.values()] == [3, 5]
    stock.adjust(room=4)
    assert [len(shelf.ready) for shelf in stock._shelves.values()] == [2, 2]
    await clock.advance(slot_stock.HORIZON_S / 2)
    await stock.take(kind("blue"))
    await clock.advance(slot_stock.HORIZON_S / 2 + 1)
    # Of three that are left nobody wants two.
    stock.adjust(room=1)
    assert len(stock) == 1
    assert stock.has(kind("blue"))
    assert len(starts.begun) == begun


async def test_a_stock_that_closes_ends_all(
    stock: slot_stock.Stock[Process], starts: Starts
) -> None:
    """What is in stock ends, what comes up later too, and who waits is told."""
    await filled(stock, starts)
    starts.go = asyncio.Semaphore(0)
    waiting = [asyncio.create_task(stock.take(kind("blue"))) for _ in range(1)]
    await asyncio.sleep(0)
    await stock.close()
    with pytest.raises(errors.NodeDraining):
        await waiting[0]
    with pytest.raises(errors.NodeDraining):
        await stock.take(kind())
    starts.let(10)

    async def ended() -> bool:
        unused = starts.made[1:]
        return starts.under_way == 0 and all(made.discarded for made in unused)

    await eventually.assert_eventually(ended)


@pytest.mark.parametrize(("takes", "sizes"), [(59, (2, 3)), (120, (3, 5)), (210, (4, 8))])
async def test_what_a_burst_has_taken_is_made_up_for_with_time(
    starts: Starts, clock: clock_double.FakeClock, takes: int, sizes: tuple[int, int]
) -> None:
    """Half of the stock at once, the rest from look to look as fast as it is taken on average."""
    stock = slot_stock.Stock(starts.start, clock, starts_max=slot_stock.STOCK_MAX * 2)
    tenants = ["red", "blue"]
    starts.let(takes * 4)
    stock.adjust(room=ROOM)
    for tenant in tenants * takes:
        await stock.take(kind(tenant))

    async def stands_at(count: int) -> bool:
        up = [sum(one.kind.tenant == tenant for one in starts.made) for tenant in tenants]
        return up == [takes + count] * 2 and stock.starting == 0

    half, full = sizes
    await eventually.assert_eventually(lambda: stands_at(half))
    made = len(starts.made)
    for _ in range(2):
        stock.adjust(room=ROOM)
        await settled(stock)
        # Of both: no more than they were woken in the time of a look.
        assert len(starts.made) - made <= 2 * takes / slot_stock.HORIZON_S + 1
        made = len(starts.made)
    assert await stands_at(full)
