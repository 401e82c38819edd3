"""The agent of a node: holds its lease, hands out its slots, publishes its load, evicts, cleans."""

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

import psutil

from torpor import clock, deployment, errors, ids
from torpor.actors import (
    agent_code,
    agent_lane,
    disposal,
    eviction,
    lease,
    load_meter,
    protocol,
    recognition,
    remains,
    slot_board,
    slot_process,
    slot_stock,
    slots,
)
from torpor.storage import keyring, local_blobs, records, redis_store, storage_proof

log = logging.getLogger(__name__)

#: How often the load is published and idle sessions are looked for.
BEAT_S = slot_stock.LOOK_S
#: Ray's own calls in flight: activations that wait, and everything quick.
CONCURRENCY_MAX = 256
#: Workspaces of deleted sessions, and those that were kept long enough, are removed this often.
TRIM_BEATS = 300
#: An agent that retires waits so long for turns under way; they run again elsewhere.
RETIRE_S = 20.0


class NodeAgent:
    """A detached Ray actor, one per node. Expected errors return as `Refusal`."""

    def __init__(
        self, place: deployment.Deployment, node: str, node_name: str, gateway: str, cpus: float
    ) -> None:
        self._place = place
        self._node = node
        self._node_name = node_name
        self._gateway = gateway
        self._cpus = cpus
        self._clock = clock.SystemClock()
        root_pid = os.getppid() if place.load_scope is deployment.LoadScope.NODE else None
        self._meter = load_meter.LoadMeter(cpus=cpus, root_pid=root_pid)
        self._slots: dict[tuple[records.SessionKey, int], slot_process.Slot] = {}
        #: What is being woken here, or waits for a permit.
        self._waking: list[tuple[records.SessionKey, int]] = []
        self._draining = False
        self._retired = False
        self._lapsed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._beat = 0
        self._reading = self._meter.read()
        self._incarnation = ""
        self._starting = asyncio.Lock()
        self._in_office = False
        self._keeper: lease.LeaseKeeper
        self._store = redis_store.open(place)
        self._recognition = recognition.Recognition(self._store)
        self._lane = agent_lane.AgentLane(node, self.activate)

    async def start(self) -> str:
        """Take office; returns the incarnation. An agent that is in office stays as it is."""
        async with self._starting:
            if not self._in_office:
                await self._start()
                self._in_office = True
        return self._incarnation

    async def _start(self) -> None:
        await self._store.check_durability()
        await storage_proof.establish(
            self._store.catalog, local_blobs.LocalBlobStore(self._place.storage)
        )
        keys = await asyncio.to_thread(keyring.load, self._place.signing_key_file)
        self._maker = slots.SlotMaker(
            self._place, keys, self._store.sessions, node=self._node, node_name=self._node_name
        )
        await self._maker.clean_leftovers()
        if self._maker.host:
            await self._lane.listen(self._maker.host)
        await self._take_office()
        self._spawn(self._keep_beat())
        self._spawn(self._keep_office())

    # --- calls of gateways ------------------------------------------------------------------------

    async def activate(self, request: protocol.Activate) -> protocol.Activated | protocol.Refusal:
        """Wake a session in a slot of this node."""
        try:
            return await self._activate(request)
        except errors.TorporError as error:
            return protocol.refuse(error)

    async def bury(self, key: records.SessionKey, epoch: int) -> bool:
        """Say whether the process of that epoch is dead, and clear the owner if so.

        One that does not answer a ping is killed first. False: it lives and answers, or is still
        being woken, which ends by itself.
        """
        if (key, epoch) in self._waking:
            return False
        slot = self._slots.get((key, epoch))
        if slot is not None and not slot.dead.is_set():
            if await slot.answers():
                return False
            await slot.kill()
        nonce = slot.nonce if slot is not None else ""
        if await self._store.sessions.vacate(
            key, epoch=epoch, incarnation=self._incarnation, nonce=nonce
        ):
            return True
        head = await self._store.sessions.head(key)
        return head.owner is None or head.epoch != epoch

    async def inspect_agent(self, import_path: str) -> protocol.AgentDescription | protocol.Refusal:
        """Import an agent in a process of its own and describe it."""
        try:
            return await agent_code.describe_apart(import_path)
        except errors.TorporError as error:
            return protocol.refuse(error)

    async def observe(self) -> records.NodeLoad:
        """Return the load as of the last beat."""
        return self._load(self._reading)

    async def drain(self) -> None:
        """Take no more sessions, ask those that are here to leave; returns before they have."""
        self._draining = True
        self._maker.stock.refuse()
        self._spawn(self._evict_all())

    async def retire(self) -> None:
        """Drain, give up the lease and leave the list of nodes: the end of this agent."""
        self._draining = True
        await self._maker.stock.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._evict_all(), RETIRE_S)
        # Another beat would put the node's load back.
        self._retired = True
        self._keeper.stop()
        self._lane.close()
        with contextlib.suppress(errors.TorporError):
            await self._store.nodes.withdraw(self._node)
            await self._store.nodes.drop_lease(self._node, self._incarnation)

    # --- activation -------------------------------------------------------------------------------

    async def _activate(self, request: protocol.Activate) -> protocol.Activated:
        if self._draining or self._lapsed.is_set():
            raise errors.NodeDraining(node=self._node_name)
        if len(self._slots) + len(self._waking) >= self._place.sessions_per_node_max:
            raise errors.NoCapacity(f"node {self._node_name} is full", node=self._node_name)
        waking = (request.key, request.observed_epoch + 1)
        self._waking.append(waking)
        try:
            await self._end_forgotten(*waking)
            slot = await self._maker.make(request, self._incarnation, ids.nonce())
        except BaseException:
            self._waking.remove(waking)
            raise
        self._spawn(self._see_up(slot))
        if self._lapsed.is_set() or slot.owner.incarnation != self._incarnation:
            raise errors.NodeDraining(node=self._node_name)
        return protocol.Activated(epoch=slot.epoch, owner=slot.owner, nonce=slot.nonce)

    async def _see_up(self, slot: slot_process.Slot) -> None:
        """Await the end of a boot; those who call the session meanwhile, its process answers."""
        try:
            await self._maker.see_up(slot)
        except errors.TorporError as error:
            log.info("not loaded: %s", error, extra={"action": "boot_refused"})
            return
        finally:
            self._waking.remove((slot.key, slot.epoch))
        self._slots[slot.key, slot.epoch] = slot
        slot.on_death = lambda dead: self._spawn(self._lay_to_rest(dead))
        if slot.dead.is_set():
            slot.on_death(slot)
        elif self._lapsed.is_set() or slot.owner.incarnation != self._incarnation:
            # It claimed the session for a term that is over: anybody may take it over.
            await slot.kill()
        elif self._draining:
            await slot.evict()

    async def _end_forgotten(self, key: records.SessionKey, epoch: int) -> None:
        """End the process here whose claim of that epoch the store has forgotten: it went back.

        Raises:
            Fenced: it has not; whoever wants to wake the session has to look again.
            NoCapacity: it is in a turn, and will say afterwards what else is lost with its claim.
        """
        slot = self._slots.get((key, epoch))
        if slot is None or slot.dead.is_set():
            return
        if (await self._store.sessions.head(key)).epoch < epoch:
            if not await slot.leaves() and await slot.answers():
                raise errors.NoCapacity("a former process of the session is busy here")
            await slot.kill()
        if (await self._store.sessions.head(key)).epoch >= epoch:
            raise errors.Fenced(session=key.session)

    async def _ask_forgotten(self) -> None:
        """Ask those to leave whom the store does not know: nobody else knows what is lost."""
        for slot in await self._recognition.forgotten(self._living()):
            log.warning("forgotten by the store: %s", slot.key, extra={"action": "forgotten"})
            self._spawn(slot.evict())

    async def _lay_to_rest(self, slot: slot_process.Slot) -> None:
        """Clear the owner, if it still is one, and remove what the process left on the node."""
        incarnation = self._incarnation
        # Not bounded by tries but by the lease: once it has lapsed, others take over without us.
        while incarnation == self._incarnation and not self._lapsed.is_set():
            try:
                await self._store.sessions.vacate(
                    slot.key, epoch=slot.epoch, incarnation=incarnation, nonce=slot.nonce
                )
                break
            except errors.NotFound:
                break
            except errors.TorporError:
                await asyncio.sleep(BEAT_S)
            except Exception:
                # Whoever calls the session next has it buried; the node's own room is freed here.
                log.exception("not vacated", extra={"action": "vacate_failed"})
                break
        try:
            await asyncio.to_thread(remains.keep, self._maker.kept, slot.folder, slot.key)
        finally:
            # Its files may take long to remove; the place of a process that is gone is free.
            if self._slots.get((slot.key, slot.epoch)) is slot:
                del self._slots[slot.key, slot.epoch]
            slot.close()
        await slot_process.clean(slot.folder)
        await disposal.aside(self._maker.kept.look, slot.key)
        await disposal.aside(self._maker.kept.trim)

    # --- the beat ---------------------------------------------------------------------------------

    async def _keep_beat(self) -> None:
        while not self._retired:
            try:
                pids = [slot.pid for slot in self._slots.values() if slot.pid is not None]
                self._reading = self._meter.read(pids)
                self._beat += 1
                self._maker.stock.adjust(room=self._room(self._reading))
                for slot in self._stuck(eviction.has_ended):
                    self._spawn(slot.kill())
                for slot in self._stuck(eviction.hangs):
                    self._spawn(slot.end_if_silent())
                for candidate in self._leaving(self._reading):
                    self._spawn(self._by_name(candidate.slot).ask_to_leave())
                await self._store.nodes.publish_load(self._load(self._reading))
                if self._recognition.due():
                    self._spawn(self._ask_forgotten())
                if self._beat % TRIM_BEATS == 0:
                    self._spawn(remains.forget_deleted(self._maker.kept, self._store.sessions))
            except errors.TorporError as error:
                log.warning("beat failed: %s", error, extra={"action": "beat_failed"})
            except Exception:
                # Nobody would start the beat again.
                log.exception("beat failed", extra={"action": "beat_failed"})
            await asyncio.sleep(BEAT_S)

    def _load(self, reading: load_meter.Reading) -> records.NodeLoad:
        return records.NodeLoad(
            node=self._node,
            incarnation=self._incarnation,
            beat=self._beat,
            sessions=len(self._slots),
            activating=len(self._waking),
            sessions_max=self._place.sessions_per_node_max,
            cpu=reading.cpu,
            memory=reading.memory,
            draining=self._draining,
            slots_in_stock=len(self._maker.stock),
        )

    def _room(self, reading: load_meter.Reading) -> int:
        """Return how many processes the node may hold in stock now."""
        if self._draining or self._lapsed.is_set():
            return 0
        return slot_stock.room(
            len(self._maker.stock),
            free=self._place.sessions_per_node_max - len(self._slots) - len(self._waking),
            memory=reading.memory,
            memory_high=self._place.memory_high,
            memory_low=self._place.memory_low,
        )

    def _leaving(self, reading: load_meter.Reading) -> list[eviction.Candidate]:
        candidates = (slot.candidate() for slot in self._slots.values())
        return eviction.choose(
            [each for each in candidates if each is not None],
            memory=reading.memory,
            memory_high=self._place.memory_high,
            memory_low=self._place.memory_low,
            memory_bytes=psutil.virtual_memory().total,
        )

    def _stuck(
        self, is_stuck: Callable[[slot_board.Activity, float], bool]
    ) -> list[slot_process.Slot]:
        return [
            slot
            for slot in self._slots.values()
            if (activity := slot.activity()) is not None
            and is_stuck(activity, slot.agent.settings.turn_timeout_s)
        ]

    def _living(self) -> list[slot_process.Slot]:
        return [slot for slot in self._slots.values() if not slot.dead.is_set()]

    def _by_name(self, name: str) -> slot_process.Slot:
        return next(slot for slot in self._slots.values() if slot.folder.name == name)

    async def _evict_all(self) -> None:
        await asyncio.gather(*(slot.evict() for slot in self._living()))

    # --- office -----------------------------------------------------------------------------------

    async def _take_office(self) -> None:
        self._incarnation = ids.nonce()
        self._lane.enter()
        await self._store.nodes.claim_lease(
            self._node, self._incarnation, ttl_ms=self._place.lease_ttl_ms
        )
        loop = asyncio.get_running_loop()
        self._keeper = lease.LeaseKeeper(
            lambda: redis_store.open(self._place),
            node=self._node,
            incarnation=self._incarnation,
            ttl_ms=self._place.lease_ttl_ms,
            on_lapse=functools.partial(loop.call_soon_threadsafe, self._lapsed.set),
            # A former term's keeper may get its answer from this one: the loop runs all the same.
            knock=functools.partial(loop.call_soon_threadsafe, lambda: self._keeper.answer()),
        )
        self._keeper.start()
        try:
            await self._store.nodes.publish_load(self._load(self._reading))
            await self._store.nodes.announce(self._record())
        except BaseException:
            # This term is not taken up: the next attempt is one of its own.
            self._keeper.stop()
            raise

    def _record(self) -> records.NodeRecord:
        return records.NodeRecord(
            node=self._node,
            name=self._node_name,
            incarnation=self._incarnation,
            agent_actor=protocol.node_agent_name(self._node),
            agent_lane=self._lane.address,
            agent_nonce=self._lane.nonce,
            gateway=self._gateway,
            sessions_max=self._place.sessions_per_node_max,
            cpus=self._cpus,
            memory_bytes=psutil.virtual_memory().total,
            started_ms=self._clock.now_ms(),
        )

    async def _keep_office(self) -> None:
        """After a lapse: drop everything this node had, then come back as a new incarnation."""
        while True:
            await self._lapsed.wait()
            # Nobody but they may know what a store has lost that was away for so long.
            await asyncio.gather(*(slot.leaves() for slot in self._living()))
            for slot in list(self._slots.values()):
                with contextlib.suppress(errors.TorporError):
                    await slot.kill()
            try:
                await self._take_office()
            except Exception as error:
                # Whatever it is: without another try the node would be lost.
                log.warning("no lease: %r", error, extra={"action": "no_lease"})
                await asyncio.sleep(BEAT_S)
                continue
            self._lapsed.clear()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", exc_info=error, extra={"action": "task_failed"})
