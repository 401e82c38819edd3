"""Slots in stock: processes that are up before anybody asks for them.

As many as the wakes of the last minute would need while one is being started: none for an agent
that nobody wakes, which then costs nothing. What a burst has taken is made up for with time.
Whoever finds none waits for the next that comes up; starts are shared out among tenants in turn, so
that one's burst does not keep the others waiting.
"""

import asyncio
import collections
import contextlib
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, TypeVar

import msgspec

from torpor import clock, errors
from torpor.storage import records

log = logging.getLogger(__name__)

#: Wakes are counted over this long; an agent that nobody woke for so long has no slot in stock.
HORIZON_S = 60.0
#: A slot is up again within this on a busy machine: the wakes of so long are kept in stock.
REFILL_S = 2.0
#: Up to this share of what is wanted slots are started as fast as may be, beyond it as fast as they
#: are taken on average: to start one takes a processor for a tenth of a second, which turns want,
#: too. After a node is lost all its sessions wake elsewhere in one moment.
AT_ONCE_SHARE = 0.5
#: How often `adjust` is called, about.
LOOK_S = 1.0
#: Of one agent version: more start faster than they are asked for, or the node is overloaded.
STOCK_MAX = 8
#: Wakes that wait for a slot on one node; beyond it the gateway looks elsewhere.
WAITING_MAX = 128
#: Of one agent's wakes in the horizon; more say nothing new, as `STOCK_MAX` is reached by then.
WAKES_KEPT_MAX = 512
#: That end with one look while memory is short: the next one shows how much they held.
DISCARDED_MAX = 4
#: After a start for the stock failed, the next is tried so much later; who waits tries at once.
FAILED_PAUSE_S = 10.0


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is made for: it has imported this, and serves nobody else."""

    tenant: str
    agent: records.AgentVersion

    @property
    def name(self) -> tuple[str, str, int]:
        """What tells one kind from another."""
        return self.tenant, self.agent.name, self.agent.version


def room(stock: int, *, free: int, memory: float, memory_high: float, memory_low: float) -> int:
    """Return how many slots a node may have in stock.

    Between the two bounds it adds none and ends none: what is ended makes room, and would be
    started again at once.

    Args:
        stock: how many there are.
        free: how many more processes the node may hold at all.
        memory: the share of it that is used.
        memory_high: above it some are ended.
        memory_low: up to it some may be added.
    """
    if memory > memory_high:
        return max(0, min(free, stock - DISCARDED_MAX))
    return min(free, stock) if memory > memory_low else free


class Startable(Protocol):
    """A process that waits for its one activation."""

    @property
    def lives(self) -> bool:
        """Whether it can still be bound."""
        ...

    async def discard(self) -> None:
        """End it unused."""
        ...


S = TypeVar("S", bound=Startable)


class _Shelf(Generic[S]):
    """What there is, and who waits, of one agent version."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.ready: collections.deque[S] = collections.deque()
        self.waiters: collections.deque[asyncio.Future[S]] = collections.deque()
        self.starting = 0
        #: When it was last its turn.
        self.served = -1
        self.taken_s: collections.deque[float] = collections.deque(maxlen=WAKES_KEPT_MAX)
        self.not_before_s = 0.0

    def wanted(self, now_s: float) -> int:
        """Return how many there should be in stock."""
        while self.taken_s and now_s - self.taken_s[0] > HORIZON_S:
            self.taken_s.popleft()
        if not self.taken_s:
            return 0
        return min(STOCK_MAX, 1 + math.ceil(len(self.taken_s) / HORIZON_S * REFILL_S))

    def lacks(self, now_s: float, share: float) -> bool:
        """Whether fewer than that share of what is wanted are there or on their way up."""
        coming = len(self.ready) + self.starting
        return coming < math.ceil(share * self.wanted(now_s)) and now_s >= self.not_before_s


class Stock(Generic[S]):
    """The slots of one node that are not bound yet."""

    def __init__(
        self,
        start: Callable[[Kind], Awaitable[S]],
        time: clock.Clock,
        *,
        starts_max: int,
    ) -> None:
        """`start` brings a process up; at most `starts_max` run at a time."""
        self._start = start
        self._clock = time
        self._starts_max = starts_max
        self._shelves: dict[tuple[str, str, int], _Shelf[S]] = {}
        #: Counts starts; who was served longest ago comes first.
        self._served = itertools.count()
        self._room = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        """How many are up and not bound."""
        return sum(len(shelf.ready) for shelf in self._shelves.values())

    @property
    def waiting(self) -> int:
        """Wakes that wait for a slot."""
        return sum(len(shelf.waiters) for shelf in self._shelves.values())

    @property
    def starting(self) -> int:
        """Slots on their way up."""
        return sum(shelf.starting for shelf in self._shelves.values())

    async def take(self, kind: Kind) -> S:
        """Return a slot that is up, to be bound once.

        Raises:
            NoCapacity: as many wait as may.
            NodeDraining: the stock is closed.
            what starting one raises
        """
        if self._closed:
            raise errors.NodeDraining
        shelf = self._shelf(kind)
        shelf.taken_s.append(self._clock.monotonic_s())
        self._bury(shelf)
        if shelf.ready:
            slot = shelf.ready.popleft()
            self._pump()
            return slot
        if self._crowded(kind.tenant):
            raise errors.NoCapacity(f"{self.waiting} sessions wait for a slot of this node")
        waiter: asyncio.Future[S] = asyncio.get_running_loop().create_future()
        shelf.waiters.append(waiter)
        self._pump()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._put(shelf, waiter.result())
            raise
        finally:
            with contextlib.suppress(ValueError):
                shelf.waiters.remove(waiter)

    def has(self, kind: Kind) -> bool:
        """Whether `take` would return one without waiting."""
        shelf = self._shelves.get(kind.name)
        return shelf is not None and any(slot.lives for slot in shelf.ready)

    def give_back(self, kind: Kind, slot: S) -> None:
        """Put one back that was taken and not bound."""
        self._put(self._shelf(kind), slot)

    def adjust(self, *, room: int) -> None:
        """Start what demand asks for and end what it does not; call every `LOOK_S`.

        `room` is how many more processes the node may hold now, as memory and its bounds allow.
        """
        self._room = room
        now_s = self._clock.monotonic_s()
        for name, shelf in list(self._shelves.items()):
            self._bury(shelf)
            for _ in range(len(shelf.ready) - shelf.wanted(now_s)):
                self._discard_of(shelf)
            if not (shelf.ready or shelf.waiters or shelf.starting or shelf.taken_s):
                del self._shelves[name]
        for _ in range(len(self) - max(0, room)):
            self._discard_of(max(self._shelves.values(), key=lambda shelf: len(shelf.ready)))
        self._pump()
        self._make_up()

    def refuse(self) -> None:
        """Send away who waits; what is up stays."""
        for shelf in self._shelves.values():
            for waiter in shelf.waiters:
                if not waiter.done():
                    waiter.set_exception(errors.NodeDraining())

    async def close(self) -> None:
        """End all that is not bound; who waits is refused."""
        self._closed = True
        self.refuse()
        ready = [slot for shelf in self._shelves.values() for slot in shelf.ready]
        self._shelves.clear()
        ended = await asyncio.gather(*(slot.discard() for slot in ready), return_exceptions=True)
        for error in ended:
            if error is not None:
                # The others end all the same, and who closes goes on.
                log.error("not ended: %r", error, extra={"action": "task_failed"})

    def _shelf(self, kind: Kind) -> _Shelf[S]:
        if kind.name not in self._shelves:
            self._shelves[kind.name] = _Shelf(kind)
        return self._shelves[kind.name]

    def _crowded(self, tenant: str) -> bool:
        """Whether a tenant may not wait: the queue is full, and its share of it is taken."""
        waiting = collections.Counter[str]()
        for shelf in self._shelves.values():
            waiting[shelf.kind.tenant] += len(shelf.waiters)
        sharing = len(+waiting) + (waiting[tenant] == 0)
        return waiting.total() >= WAITING_MAX and waiting[tenant] >= WAITING_MAX // sharing

    def _bury(self, shelf: _Shelf[S]) -> None:
        """Remove what dead slots have left."""
        for slot in [slot for slot in shelf.ready if not slot.lives]:
            shelf.ready.remove(slot)
            self._spawn(slot.discard())

    def _discard_of(self, shelf: _Shelf[S]) -> None:
        self._spawn(shelf.ready.pop().discard())

    def _pump(self) -> None:
        """Begin as many starts as may run: first for who waits, tenant after tenant."""
        while self._may_start():
            shelf = self._awaited() or self._understocked(AT_ONCE_SHARE)
            if shelf is None:
                return
            self._begin(shelf)

    def _make_up(self) -> None:
        """Begin as many starts beyond that share as there are wakes from one look to the next."""
        taken = sum(len(shelf.taken_s) for shelf in self._shelves.values())
        for _ in range(math.ceil(taken / HORIZON_S * LOOK_S)):
            shelf = self._understocked(1.0) if self._may_start() else None
            if shelf is None:
                return
            self._begin(shelf)

    def _may_start(self) -> bool:
        return not self._closed and self.starting < self._starts_max

    def _begin(self, shelf: _Shelf[S]) -> None:
        shelf.starting += 1
        shelf.served = next(self._served)
        self._spawn(self._bring_up(shelf))

    def _awaited(self) -> _Shelf[S] | None:
        """Return whom to start for that is waited for.

        Starts may take long, so that turns alone would let one tenant hold all places: where there
        are several, the last place is for one that has none.
        """
        under_way = self._under_way()
        last_place = len(under_way) > 1 and under_way.total() >= self._starts_max - 1 > 0
        lacking = [
            shelf
            for shelf in self._shelves.values()
            if shelf.starting < len(shelf.waiters)
            and not (last_place and under_way[shelf.kind.tenant])
        ]
        return _first(lacking, under_way)

    def _understocked(self, share: float) -> _Shelf[S] | None:
        """Return whom to start for that has less than that share of what is wanted."""
        now_s = self._clock.monotonic_s()
        if len(self) + self.starting >= self._room or self.starting >= self._starts_max - 1 > 0:
            # One place is left for whoever comes next.
            return None
        lacking = [shelf for shelf in self._shelves.values() if shelf.lacks(now_s, share)]
        return _first(lacking, self._under_way())

    def _under_way(self) -> collections.Counter[str]:
        """Return how many starts of each tenant are under way."""
        found = collections.Counter[str]()
        for shelf in self._shelves.values():
            found[shelf.kind.tenant] += shelf.starting
        return found

    async def _bring_up(self, shelf: _Shelf[S]) -> None:
        try:
            slot = await self._start(shelf.kind)
        except Exception as error:
            shelf.starting -= 1
            shelf.not_before_s = self._clock.monotonic_s() + FAILED_PAUSE_S
            waiter = _next(shelf)
            if waiter is not None:
                waiter.set_exception(error)
            else:
                log.warning("no slot of %s: %s", shelf.kind, error, extra={"action": "no_slot"})
        else:
            shelf.starting -= 1
            self._put(shelf, slot)
        self._pump()

    def _put(self, shelf: _Shelf[S], slot: S) -> None:
        if self._closed:
            self._spawn(slot.discard())
        elif (waiter := _next(shelf)) is not None:
            waiter.set_result(slot)
        else:
            shelf.ready.append(slot)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a slot's task failed", exc_info=error, extra={"action": "task_failed"})


def _next(shelf: _Shelf[S]) -> asyncio.Future[S] | None:
    """Return the first who still waits, taken off the queue."""
    while shelf.waiters:
        waiter = shelf.waiters.popleft()
        if not waiter.done():
            return waiter
    return None


def _first(lacking: Iterable[_Shelf[S]], under_way: collections.Counter[str]) -> _Shelf[S] | None:
    """Return the shelf whose turn it is: of the tenant with the fewest starts under way."""
    return min(
        lacking, key=lambda shelf: (under_way[shelf.kind.tenant], shelf.served), default=None
    )
