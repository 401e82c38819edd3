"""What is measured while nodes are lost or frozen: sessions that lived there, and all others."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import machine
import procfs
import report
import schedule
from torpor.testing.recording import Ending, Operation

if TYPE_CHECKING:
    from jobs import Slot
    from load import Load
    from residents import Resident
    from world import Node, World

#: Taken before the first fault.
WAKES = 8
#: A session that has not answered again after this is counted with this.
AGAIN_MAX_S = 30.0
#: A session whose node died is called this often, whatever became of earlier calls.
CALL_EVERY_S = 0.25
#: While turns elsewhere are measured: leaves the machine idle capacity.
QUIET_RATE_PER_S = 4.0
#: Measured calls of all quiet sessions together.
SAMPLES_PER_S = 12.0
#: How long turns are measured before the fault.
BEFORE_S = 5.0
#: Until the load is the quiet one.
SETTLE_S = 1.0
#: How long a node stays away, or a frozen one stays so after its fault's own time.
STANDS_LEASES = 1.5
#: In the name of the fault that calls everybody.
CALLED = "called at once"
#: The death of a process is noticed within this.
_LOOK_EVERY_S = 0.02


class Watch(Protocol):
    """Something that is done around a fault, and decides how long it stands."""

    async def __aenter__(self) -> Self:
        """Begin, before the fault."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, after it is healed or could not be injected."""
        ...

    async def stand(self) -> None:
        """Return when the fault has stood long enough."""
        ...


class Measures:
    """All samples of a run, in seconds."""

    def __init__(self, world: "World", load: "Load") -> None:
        self._world = world
        self._load = load
        self.wakes_s: list[float] = []
        #: From a node's death to each session's first answer.
        self.again_s: list[float] = []
        #: Turns of sessions elsewhere, before a fault and while it stands.
        self.before_s: list[float] = []
        self.during_s: list[float] = []

    def watch(self, turn: schedule.Turn, stand_s: float) -> Watch:
        """Return what is to be done around this run of a fault.

        Where everybody is called at once, the sessions that were on the node are measured; where a
        node is lost or frozen otherwise, the others are, as that needs idle capacity.
        """
        if schedule.kind(turn.fault.name) not in ("node loss", "freeze"):
            return Standing(stand_s)
        if CALLED in turn.fault.name:
            return Answering(self._world, self._load, self.again_s)
        return Elsewhere(self._world, self._load, self.before_s, self.during_s)

    async def measure_wakes(self) -> None:
        """Put sessions to sleep and call them, one after another."""
        for index in range(WAKES):
            slot = self._load.quiet[index % len(self._load.quiet)]
            evicted = await self._load.evict(slot)
            called = await self._load.append(slot)
            if evicted.ending is Ending.OK and called.ending is Ending.OK:
                self.wakes_s.append(_took_s(called))

    def figures(self) -> list[report.Figure]:
        """Return what was measured, as far as there are samples."""
        lease_s = self._world.lease_ttl_ms / 1000
        found = [
            report.Figure(
                name=f"a session whose node died answers again, p{share * 100:.0f}",
                unit="s",
                value=report.percentile(self.again_s, share),
                floor=2 * lease_s + report.percentile(self.wakes_s, share),
                target=1.0,
                samples=len(self.again_s),
                against=f"2 x the lease of {lease_s:g} s + a wake from sleep",
            )
            for share in (0.5, 0.99)
            if self.again_s and self.wakes_s
        ]
        if self.before_s and self.during_s:
            found.append(
                report.Figure(
                    name="a turn elsewhere while a node is lost or frozen, p99",
                    unit="ms",
                    value=1000 * report.percentile(self.during_s, 0.99),
                    floor=1000 * report.percentile(self.before_s, 0.99),
                    target=1.2,
                    samples=len(self.during_s),
                    against=f"the same sessions before it ({len(self.before_s)} turns)",
                )
            )
        return found


class Standing:
    """Lets a fault stand for a while."""

    def __init__(self, stand_s: float) -> None:
        self._stand_s = stand_s

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End."""

    async def stand(self) -> None:
        """Wait."""
        await asyncio.sleep(self._stand_s)


class Answering:
    """Calls each session whose node died all the time until it answers, and then lets go."""

    def __init__(self, world: "World", load: "Load", into: list[float]) -> None:
        self._world = world
        self._load = load
        self._into = into
        self._owners: Mapping[str, Resident] = {}
        self._died_s: dict[str, float] = {}
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Wake all sessions, so that every node has some, and look to their processes."""
        await self._load.call_everybody()
        self._owners = await owners(self._world)
        self._looking = asyncio.create_task(self._keep_looking())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Look no more; who has not answered by now is waited for."""
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.gather(*self._calls.values())

    async def stand(self) -> None:
        """Wait until all have answered that lived on a node whose processes are all dead."""
        self._look()
        await asyncio.gather(*self._calls.values())

    async def _keep_looking(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_LOOK_EVERY_S)

    def _look(self) -> None:
        for key, owner in self._owners.items():
            if key not in self._died_s and procfs.state(owner.pid) in procfs.DEAD:
                self._died_s[key] = time.monotonic()
        living = {owner.node for key, owner in self._owners.items() if key not in self._died_s}
        for slot in self._load.slots:
            if slot.key not in self._owners or slot.key in self._calls:
                continue
            if self._owners[slot.key].node not in living:
                call = self._call(slot, self._died_s[slot.key])
                self._calls[slot.key] = asyncio.create_task(call)

    async def _call(self, slot: "Slot", died_s: float) -> None:
        calls: list[asyncio.Task[Operation]] = []
        again_s = AGAIN_MAX_S
        while again_s == AGAIN_MAX_S and time.monotonic() < died_s + AGAIN_MAX_S:
            calls.append(asyncio.create_task(self._load.append(slot, once=True)))
            await asyncio.sleep(CALL_EVERY_S)
            answered = [call.result() for call in calls if call.done()]
            ends_s = [each.ended_s or 0.0 for each in answered if each.ending is Ending.OK]
            again_s = min([end_s - died_s for end_s in ends_s], default=AGAIN_MAX_S)
        self._into.append(again_s)
        await asyncio.gather(*calls)


class Elsewhere:
    """Measures turns of sessions on nodes that the fault leaves alone, before it and during it."""

    def __init__(
        self, world: "World", load: "Load", before_s: list[float], during_s: list[float]
    ) -> None:
        self._world = world
        self._load = load
        self._before_s = before_s
        self._during_s = during_s
        self._usual_rate_per_s = load.rate_per_s
        self._owners: Mapping[str, Resident] = {}
        self._before: list[asyncio.Task[Operation]] = []
        self._during: list[asyncio.Task[Operation]] = []
        self._sampling: asyncio.Task[None] | None = None
        #: Sessions on nodes that the fault left alone, whatever became of their processes.
        self._elsewhere: set[str] = set()

    async def __aenter__(self) -> Self:
        """Measure under a load that leaves the machine idle capacity, and go on measuring."""
        self._load.rate_per_s = QUIET_RATE_PER_S
        await asyncio.gather(*(self._load.append(slot) for slot in self._load.quiet))
        self._owners = await owners(self._world)
        await asyncio.sleep(SETTLE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEFORE_S):
                await self._sample(self._before)
        self._sampling = asyncio.create_task(self._sample(self._during))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Keep what was measured of sessions elsewhere, and bring the load back."""
        if self._sampling is not None:
            self._sampling.cancel()
        self._load.rate_per_s = self._usual_rate_per_s
        for calls, into in ((self._before, self._before_s), (self._during, self._during_s)):
            ended = await asyncio.gather(*calls)
            into += [
                # No session elsewhere may refuse: a quick refusal is no quick turn.
                _took_s(call) if call.ending is Ending.OK else AGAIN_MAX_S
                for call in ended
                if call.key in self._elsewhere
            ]

    async def stand(self) -> None:
        """Measure until a node that is gone has been replaced by the others."""
        await asyncio.sleep(STANDS_LEASES * self._world.lease_ttl_ms / 1000)
        if self._sampling is not None:
            self._sampling.cancel()
        alone = {name for name, node in self._world.nodes.items() if _goes_on(node)}
        self._elsewhere = {key for key, owner in self._owners.items() if owner.node in alone}

    async def _sample(self, calls: list[asyncio.Task[Operation]]) -> None:
        """Call the quiet sessions in turn, each through the gateway of its own node."""
        slots = [slot for slot in self._load.quiet if slot.key in self._owners]
        for index in itertools.count():
            if slots:
                slot = slots[index % len(slots)]
                gateway = self._world.nodes[self._owners[slot.key].node].gateway
                append = self._load.append(slot, gateway=gateway, once=True)
                calls.append(asyncio.create_task(append))
            await asyncio.sleep(1 / SAMPLES_PER_S)


async def owners(world: "World") -> Mapping[str, "Resident"]:
    """Return the process of each session that has one: of those that claimed it the last."""
    found: dict[str, Resident] = {}
    for resident in await world.residents():
        if resident.session not in found or found[resident.session].epoch < resident.epoch:
            found[resident.session] = resident
    return found


def _goes_on(node: "Node") -> bool:
    """Whether a node is neither lost nor frozen: its raylet runs."""
    return not all(map(procfs.stands_still, node.find(machine.Role.RAYLET)))


def _took_s(operation: Operation) -> float:
    return (operation.ended_s or operation.begun_s) - operation.begun_s
