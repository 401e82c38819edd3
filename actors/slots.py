"""The slots of one node: how they are made, and bound to a session."""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import ray

from torpor import clock, deployment, errors, ids
from torpor.actors import (
    lane_address,
    protocol,
    ray_compat,
    remains,
    session,
    slot_process,
    slot_stock,
    stopwatch,
)
from torpor.storage import kept_workspaces, keyring, records, store

log = logging.getLogger(__name__)

#: A process that imports everything anew, on a machine that starts several.
START_TIMEOUT_S = 60.0
#: A process whose boot was refused answers those who have called it meanwhile, and ends.
REFUSED_GRACE_S = 2.0
#: Folders that are removed while nobody waits; wakes that go on failing must not fill the disk.
CLEANINGS_MAX = 16


class SlotMaker:
    """Makes slots for one incarnation of a node's agent, and keeps some in stock."""

    def __init__(
        self,
        place: deployment.Deployment,
        keys: keyring.Keyring,
        sessions: store.Sessions,
        *,
        node: str,
        node_name: str,
    ) -> None:
        self._place = place
        self._sessions = sessions
        self._keys = keys
        self._node = node
        self._node_name = node_name
        self._root = place.scratch / node_name / "slots"
        self.host = ray.util.get_node_ip_address() if place.lanes else ""
        self.stock: slot_stock.Stock[slot_process.Slot] = slot_stock.Stock(
            self.start, clock.SystemClock(), starts_max=place.activations_per_node_max
        )
        self.kept = kept_workspaces.KeptWorkspaces(
            place.scratch / node_name / "kept", clock.SystemClock()
        )
        #: Of folders whose processes are gone.
        self._cleaning: set[asyncio.Task[None]] = set()
        #: Each reason is told once for each kind.
        self._told: set[tuple[tuple[str, str, int], str]] = set()
        # Wrapped once: wrapping again would export the class to the cluster again.
        self._actor_class: Any = ray.remote(session.AgentSession)

    async def make(
        self,
        request: protocol.Activate,
        incarnation: str,
        nonce: str,
    ) -> slot_process.Slot:
        """Take a slot and let it begin to claim and load the session; it takes calls from now on.

        Await its end with `see_up`.

        Raises:
            NoCapacity: too many wait for a slot.
            Fenced: the session was woken elsewhere meanwhile.
            ActivationFailed: the process is gone or about to be.
        """
        kind = slot_stock.Kind(tenant=request.key.tenant, agent=request.agent)
        ends_s = time.monotonic() + request.deadline_s
        watch = stopwatch.Stopwatch({"placement": request.placement_ms})
        slot = await self._take(kind, request)
        owner = records.Owner(
            node=self._node, incarnation=incarnation, actor=slot.actor, lane=slot.lane
        )
        claim = records.Acquire(
            key=request.key,
            observed_epoch=request.observed_epoch,
            observed_incarnation=request.observed_incarnation,
            owner=owner,
            nonce=nonce,
        )
        slot.bind(claim)
        with _failures(str(request.key)):
            try:
                if request.key in self.kept:
                    taken = asyncio.to_thread(self.kept.take, request.key, slot.folder)
                    await asyncio.wait_for(taken, ends_s - time.monotonic())
                watch.lap("slot")
                left_s = ends_s - time.monotonic()
                binding = protocol.Bind(claim=claim, laps_ms=watch.laps_ms, boot_s=left_s)
                await slot.begin(binding, left_s)
            except BaseException as error:
                await self._give_up(slot, error)
                raise
        slot.boot_ends_s = ends_s
        return slot

    async def see_up(self, slot: slot_process.Slot) -> None:
        """Await that the session is loaded.

        Raises:
            TorporError: why it is not; the process is gone.
        """
        with _failures(str(slot.key)):
            try:
                # Its process gives up by itself before.
                await slot.booted(slot.boot_ends_s - time.monotonic() + REFUSED_GRACE_S)
            except BaseException as error:
                if isinstance(error, errors.TorporError):
                    # It says so to those who have called it, and ends.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(slot.dead.wait(), REFUSED_GRACE_S)
                await self._give_up(slot, error)
                raise

    async def _give_up(self, slot: slot_process.Slot, error: BaseException) -> None:
        """End a slot whose boot failed; the files that it was given stay on the node."""
        await slot.end()
        # A process that says why it gives up has not died of a message.
        refused = isinstance(error, errors.TorporError)
        died = not refused or isinstance(error, errors.OwnerUnreachable)
        with contextlib.suppress(errors.TorporError):
            # It may have claimed the session. Who calls next would only learn that it is dead.
            await self._sessions.vacate(
                slot.key,
                epoch=slot.epoch,
                incarnation=slot.owner.incarnation,
                nonce=slot.nonce,
                died=died,
            )
        if slot.dead.is_set():
            await asyncio.to_thread(remains.keep, self.kept, slot.folder, slot.key)
        slot.close()
        # Its files may take long to remove; the place of a process that is gone is free.
        cleaning = asyncio.create_task(slot_process.clean(slot.folder))
        self._cleaning.add(cleaning)
        cleaning.add_done_callback(self._cleaning.discard)
        if len(self._cleaning) > CLEANINGS_MAX:
            await asyncio.wait([cleaning])

    async def _take(self, kind: slot_stock.Kind, request: protocol.Activate) -> slot_process.Slot:
        waits = not self.stock.has(kind)
        try:
            async with asyncio.timeout(request.deadline_s):
                slot = await self.stock.take(kind)
        except TimeoutError:
            raise errors.NoCapacity("no slot came up in time", node=self._node_name) from None
        if not waits:
            return slot
        # It took a while: others may have been asked too, and the process need not be wasted.
        try:
            if (await self._sessions.head(request.key)).epoch != request.observed_epoch:
                raise errors.Fenced(session=request.key.session)
        except BaseException:
            self.stock.give_back(kind, slot)
            raise
        return slot

    async def start(self, kind: slot_stock.Kind) -> slot_process.Slot:
        """Start a process that waits to be bound.

        Raises:
            ActivationFailed: it did not come up.
            AgentImportFailed, StoreUnavailable, StoreBelowDurability
        """
        nonce = ids.nonce()
        name = f"{kind.tenant}.{kind.agent.name}.{kind.agent.version}.{nonce[:12]}"
        actor = protocol.slot_actor_name(self._node, nonce)
        slot = slot_process.Slot(kind, actor, self._root / name)
        with _failures(kind.agent.name):
            try:
                slot.folder.mkdir(parents=True)
                slot.handle = await asyncio.to_thread(self._create, kind, slot)
                prepare = slot.handle.prepare.remote()
                answer: protocol.Prepared | protocol.Refusal = await asyncio.wait_for(
                    prepare, START_TIMEOUT_S
                )
                prepared = protocol.accept(answer)
            except BaseException:
                await slot.discard()
                raise
        slot.pid, slot.lane = prepared.pid, prepared.lane
        slot.handle.run_until_ended.remote()
        slot.watch()
        await slot.connect()
        self._tell_once(kind, prepared.not_forked)
        return slot

    def _create(self, kind: slot_stock.Kind, slot: slot_process.Slot) -> object:
        recipe = ray_compat.Recipe(
            tenant=kind.tenant,
            agent=kind.agent.name,
            version=kind.agent.version,
            import_path=kind.agent.import_path,
            sys_path=tuple(path for path in sys.path if path),
        )
        spec = protocol.SlotSpec(
            deployment=self._place,
            agent=kind.agent,
            keys=self._keys.for_tenant(kind.tenant),
            node_name=self._node_name,
            slot=slot.folder,
            host=self.host,
            secret=slot.secret,
        )
        return self._actor_class.options(
            name=slot.actor,
            namespace=protocol.NAMESPACE,
            num_cpus=0,
            max_restarts=0,
            max_concurrency=session.CONCURRENCY_MAX,
            label_selector={"ray.io/node-id": self._node},
            enable_task_events=False,
            runtime_env=ray_compat.forked(recipe),
        ).remote(spec)

    def _tell_once(self, kind: slot_stock.Kind, not_forked: str) -> None:
        # Behind the colon it may name processes.
        reason = (kind.name, not_forked.partition(":")[0])
        if not_forked and reason not in self._told:
            self._told.add(reason)
            log.warning(
                "sessions of %s on node %s start from nothing, as Ray's workers do: %s",
                kind.agent.name,
                self._node_name,
                not_forked,
                extra={"action": "not_forked"},
            )

    async def clean_leftovers(self) -> None:
        """Remove what earlier incarnations of this node left: processes first, then folders."""
        for folder in sorted(self._root.glob("*")):
            await slot_process.clean(folder)
        await asyncio.to_thread(self.kept.clean_leftovers)
        await asyncio.to_thread(lane_address.clean_leftovers, lane_address.sockets_folder())


@contextlib.contextmanager
def _failures(whose: str) -> Iterator[None]:
    """Turn what Ray and the system raise into `ActivationFailed`."""
    try:
        yield
    except (
        OSError,
        ray.exceptions.RayError,
        ValueError,
        msgspec.MsgspecError,
        errors.OwnerUnreachable,
    ) as error:
        raise errors.ActivationFailed(
            f"the session's process did not come up: {type(error).__name__}: {error}",
            session=whose,
        ) from error
