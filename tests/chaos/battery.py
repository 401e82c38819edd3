"""Breaks a world again and again, and proves each time that nothing was lost and nothing ran twice.

    baseline → break → let it stand → heal → wait until all is healthy → verify

A fault's operations are those that began while it stood or before all was healthy again. Nothing
is under way when the next one begins, so what is wrong then is the doing of this one.
"""

import asyncio
import collections
import pathlib
import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

import fault
import measures
import procfs
import report
import schedule
from torpor import errors, messages, probes
from torpor.storage import records
from torpor.testing import invariants, invariants_ledger
from torpor.testing.recording import Ending
from torpor.testing.violations import Invariant, Violation

if TYPE_CHECKING:
    from jobs import Slot
    from load import Load
    from world import World

#: All gateways and sessions answer again within this after a heal (I6). A machine of two cores
#: takes a third of it to start all processes anew; one that others use, too, takes longer.
HEALTHY_MAX_S = 60.0
#: A world that is not healthy after this either is not broken any further.
GIVE_UP_S = 120.0
#: Until what is under way has ended once all is healthy: an operation's last attempt and its wait.
PAUSE_MAX_S = 60.0
#: Until accepted messages had their turns: a few sweeps of the gateways.
INBOX_MAX_S = 20.0
#: A fault is broken off after this: a rolling restart is the longest.
FAULT_MAX_S = 300.0
#: How long faults stand, in leases: shorter and longer than one.
STANDS_LEASES = {fault.Cost.CHEAP: (0.1, 0.4), fault.Cost.EXPENSIVE: (0.2, 1.2)}
#: All sessions: the store itself may have lost something.
ANY = "*"
_POLL_S = 0.05


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What a fault raised."""

    why: str
    #: Whether it judged the system: that holds, whoever stood beside it.
    verdict: bool


class Episode(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of `faults.jsonl`: what stood when, on the clock of the operations."""

    #: (name, run, what it raised or empty).
    faults: tuple[tuple[str, int, str], ...]
    begun_s: float
    healed_s: float
    healthy_after_s: float | None
    ended_s: float
    violations: tuple[Violation, ...] = ()


class Battery:
    """One run over one world."""

    def __init__(
        self,
        world: "World",
        load: "Load",
        checker: invariants.Checker,
        *,
        seed: str,
        folder: pathlib.Path,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        """Prepare a run; nothing happens.

        Args:
            world: what is broken.
            load: what runs meanwhile.
            checker: of the load's recorder.
            seed: decides what faults choose.
            folder: gets what is needed to find out about a violation.
            say: is told how it goes on.
            warn: is told what must not be overlooked.
        """
        self._world = world
        self._load = load
        self._checker = checker
        self._seed = seed
        self._folder = folder
        (folder / "probes").mkdir(exist_ok=True)
        self._say = say
        self._warn = warn
        self.measures = measures.Measures(world, load)
        #: By fault, in the order of their first runs.
        self.accounts: dict[str, report.Account] = {}
        self.violations: list[Violation] = []
        #: Why the run ended early.
        self.broken_off = ""
        self._steps = 0
        #: Reports of losses that were counted: session, event, and the owner's clock.
        self._reported: set[tuple[str, int, int]] = set()
        #: Sessions of which losses may be reported in this episode, or `ANY`.
        self._excused: set[str] = set()
        #: When the last of the faults that stand together began to be healed.
        self._stood_s = 0.0
        #: How many of the recorded operations were searched for such reports.
        self._searched = 0

    async def run(self, steps: Iterable[schedule.Step], *, until_s: float) -> None:
        """Run the steps; those that are not required only until then, on the monotonic clock."""
        self._world.call_everybody = self._load.call_everybody
        nothing = schedule.Step(turns=(), required=True)
        await self._episode(nothing)
        if not self.broken_off:
            await self.measures.measure_wakes()
        for step in steps:
            if self.broken_off or (not step.required and time.monotonic() > until_s):
                break
            for turn in await self._episode(step):
                # They may be in each other's way; alone, it has to come about.
                if not self.broken_off:
                    await self._episode(schedule.Step(turns=(turn,), required=True))
        if not self.broken_off:
            await self._episode(nothing)

    # --- one episode ------------------------------------------------------------------------------

    async def _episode(self, step: schedule.Step) -> list[schedule.Turn]:
        """Run a step; returns the faults that did not come about in the company of others."""
        self._steps += 1
        name = step.name or report.NO_FAULT
        names = [turn.fault.name for turn in step.turns] or [name]
        accounts = [self.accounts.setdefault(name, report.Account(name)) for name in names]
        self._load.accounts = accounts
        self._excused.clear()
        self._world.keep_room()
        begun_s = self._stood_s = time.monotonic()
        failures = await asyncio.gather(*(self._break(turn) for turn in step.turns))
        # Healing takes its time, too: a node has to start, a store to load.
        healed_s = self._stood_s
        healthy_after_s = await self._healthy(healed_s, HEALTHY_MAX_S)
        found = invariants.healed(
            name,
            healed_s=healed_s,
            healthy_s=None if healthy_after_s is None else healed_s + healthy_after_s,
            bound_s=HEALTHY_MAX_S,
        )
        if healthy_after_s is None and await self._load.healthy(GIVE_UP_S) is None:
            self.broken_off = f"nothing was healthy {GIVE_UP_S:g} s after {name!r}"
        found += await self._verify(accounts)
        episode = Episode(
            faults=tuple(
                (turn.fault.name, turn.run, failure.why if failure else "")
                for turn, failure in zip(step.turns, failures, strict=True)
            ),
            begun_s=begun_s,
            healed_s=healed_s,
            healthy_after_s=healthy_after_s,
            ended_s=time.monotonic(),
            violations=tuple(found),
        )
        self._account(step, accounts, episode)
        return self._failed(step, accounts, failures)

    async def _healthy(self, healed_s: float, within_s: float) -> float | None:
        """Return the seconds from the heal until all is well, None if that takes too long."""
        if await self._load.healthy(max(0.0, healed_s + within_s - time.monotonic())) is None:
            return None
        return time.monotonic() - healed_s

    async def _break(self, turn: schedule.Turn) -> Failure | None:
        """Break, let it stand, and heal; returns what went wrong with that, if anything did."""
        name = f"{self._seed}/{turn.fault.name}/{turn.run}"
        leases = random.Random(f"{name}/stands").uniform(*STANDS_LEASES[turn.fault.cost])
        watch = self.measures.watch(turn, leases * self._world.lease_ttl_ms / 1000)
        begun_s, damaged = time.monotonic(), len(self._world.damaged)
        excused = not turn.fault.loses
        try:
            async with (
                asyncio.timeout(FAULT_MAX_S),
                watch,
                turn.fault.inject(self._world, random.Random(name)),
            ):
                if not excused:
                    self._excuse(turn.fault, damaged, since_s=begun_s)
                    excused = True
                await watch.stand()
                self._stood_s = time.monotonic()
        except Exception as error:
            # Whatever it is: the run goes on, and the row says so.
            if not excused:
                self._excuse(turn.fault, damaged, since_s=begun_s)
            return Failure(
                why=f"run {turn.run}: {type(error).__name__}: {error}",
                verdict=isinstance(error, fault.Wrong),
            )
        return None

    def _excuse(self, which: fault.Fault, damaged: int, *, since_s: float) -> None:
        """Tell the checker what may be lost now, provided that it is reported."""
        for each in self._world.damaged[damaged:]:
            self._excused.add(str(each.key))
            self._checker.may_be_damaged(
                str(each.key), version=each.version, whole_version=each.whole
            )
        if which.fails_over:
            self._excused.add(ANY)
            # The replica has what was acknowledged before it was cut off.
            self._checker.may_lose(time.monotonic(), since_s=since_s, kept_s=since_s)

    # --- what must hold ---------------------------------------------------------------------------

    async def _verify(self, accounts: Sequence[report.Account]) -> list[Violation]:
        """Judge everything that happened since the last time."""
        quiet = await self._load.pause(PAUSE_MAX_S)
        if not quiet:
            for account in accounts:
                account.errors.append(f"operations were under way after {PAUSE_MAX_S:g} s")
        await self._inboxes_empty()
        try:
            readings = await asyncio.gather(
                *(self._judge(slot, accounts, final=quiet) for slot in self._load.slots)
            )
            found = [violation for reading in readings for violation in reading]
            former, self._load.former = self._load.former, []
            for slot in former:
                if (await self._load.delete(slot)).ending is Ending.OK:
                    found += self._checker.retire(slot.key, slot.last)
                else:
                    self._load.former.append(slot)
            await self._load.retire_long()
            found += self._told_of_losses()
            self._file_away()
            return found + self._checker.late()
        finally:
            self._load.resume()

    async def _judge(
        self, slot: "Slot", accounts: Sequence[report.Account], *, final: bool
    ) -> list[Violation]:
        try:
            reading = await self._load.read_back(slot, self._checker.last_seq(slot.key))
        except errors.TorporError as error:
            detail = f"its history cannot be read: {error.reason}: {error}"
            return [Violation(invariant=Invariant.HEALED, session=slot.key, detail=detail)]
        found = self._checker.verify(slot.key, reading.events, begun_s=reading.begun_s, final=final)
        for event in reading.events:
            reported = (slot.key, event.seq, event.at_ms)
            if event.type != messages.SESSION_RECOVERED or reported in self._reported:
                continue
            self._reported.add(reported)
            for account in accounts:
                account.losses += 1
            if not self._excused & {ANY, slot.key}:
                detail = f"event {event.seq} reports a loss where none may be: {event.data}"
                found.append(Violation(invariant=Invariant.ONCE, session=slot.key, detail=detail))
        return found

    def _told_of_losses(self) -> list[Violation]:
        """Return what is wrong if clients were told of losses: all, if nothing may be lost."""
        recorded = self._load.recorder.operations
        new, self._searched = recorded[self._searched :], len(recorded)
        return [
            Violation(
                invariant=Invariant.ONCE,
                session=operation.key,
                detail=f"{operation.kind} was refused with {operation.reason} where none may be",
                operations=(operation.id,),
            )
            for operation in new
            if operation.reason in invariants_ledger.LOST
            and not self._excused & {ANY, operation.key}
        ]

    def _file_away(self) -> None:
        """Move the records of processes that have ended to where nobody reads them again."""
        ended = [
            path
            for path in self._world.probes.folder.glob(f"*{probes.RECORD}")
            if procfs.state(int(path.name.partition("-")[0])) in procfs.DEAD
        ]
        # Only now: what they wrote before they ended is all there, and read.
        self._checker.collect()
        for path in ended:
            shutil.move(path, self._folder / "probes" / path.name)

    async def _inboxes_empty(self) -> None:
        """Wait until all accepted messages had their turns.

        What waits longer is lost, or as good as that: the checker shall say so.
        """
        deadline_s = time.monotonic() + INBOX_MAX_S
        waiting = collections.deque(self._load.slots)
        while waiting and time.monotonic() < deadline_s:
            slot = waiting[0]
            if await self._inbox_empty(records.SessionKey(slot.tenant, slot.session)):
                waiting.popleft()
            else:
                await asyncio.sleep(_POLL_S)

    async def _inbox_empty(self, key: records.SessionKey) -> bool:
        try:
            return not await self._world.store.sessions.inbox(key)
        except errors.TorporError:
            return False

    # --- what came of it --------------------------------------------------------------------------

    def _account(
        self, step: schedule.Step, accounts: Sequence[report.Account], episode: Episode
    ) -> None:
        raised, self._load.failures = self._load.failures, []
        for account in accounts:
            account.violations += len(episode.violations)
            account.errors += [f"the load failed: {each}" for each in raised]
            if episode.healthy_after_s is None:
                account.unhealthy += 1
            elif step.turns:
                account.healthy_after_s.append(episode.healthy_after_s)
        after = (
            "not healthy"
            if episode.healthy_after_s is None
            else f"healthy after {episode.healthy_after_s:.1f} s"
        )
        count = len(self._load.recorder.operations)
        self._say(f"{count} operations · {self._steps}: {step.name or report.NO_FAULT}: {after}")
        with (self._folder / "faults.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(episode) + b"\n")
        if episode.violations:
            self._keep(step, episode.violations)

    def _failed(
        self,
        step: schedule.Step,
        accounts: Sequence[report.Account],
        failures: Sequence[Failure | None],
    ) -> list[schedule.Turn]:
        again = []
        for turn, account, failure in zip(step.turns, accounts, failures, strict=False):
            if failure is None:
                account.runs += 1
            elif failure.verdict or len(step.turns) == 1:
                account.errors.append(failure.why)
                self._warn(f"{turn.fault.name}: {failure.why}, seed {self._seed}")
            else:
                again.append(turn)
        return again

    def _keep(self, step: schedule.Step, violations: Sequence[Violation]) -> None:
        self.violations += violations
        for violation in violations:
            self._warn(str(violation))
        runs = ", ".join(f"{turn.fault.name!r} run {turn.run}" for turn in step.turns)
        self._warn(f"  found after {runs or report.NO_FAULT}, seed {self._seed}: {self._folder}")
        # The processes go on writing; what they wrote of this is there.
        for path in self._world.probes.folder.glob(f"*{probes.RECORD}"):
            shutil.copy(path, self._folder / "probes")
