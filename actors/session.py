"""The Ray actor that a live session is.

One process, one activation: it is booted once, works, and ends. Everything that matters is in
`torpor.actors.residence`; this is its shell: checks the epoch, queues, awaits the answer.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
import ray

from torpor import clock, definition, errors, probes
from torpor.actors import (
    agent_code,
    agent_thread,
    lane_address,
    lane_frames,
    lane_server,
    lifecycle,
    mailbox,
    output,
    ownership,
    protocol,
    ray_compat,
    recovery,
    residence,
    slot_board,
    stopwatch,
)
from torpor.storage import blobs, local_blobs, records, redis_store, snapshot, store

log = logging.getLogger(__name__)

#: Ray's own calls in flight to one session: a full mailbox, and the calls that never wait in it.
CONCURRENCY_MAX = 128
#: After its session has ended a process stays this long, so that answers under way get out.
LINGER_S = 0.2
#: One that could not load its session stays this long, so that those who are about to call it hear
#: why.
REFUSED_LINGER_S = 1.0
NOT_THE_OWNER = "this process does not own that epoch"


class AgentSession:
    """A session's owner, as gateways and the node agent call it. Errors return as `Refusal`."""

    def __init__(self, spec: protocol.SlotSpec, equip: "Equip | None" = None) -> None:
        """`equip` is for those who have a store of their own."""
        self._spec = spec
        self._equip = equip or _equip
        self._equipment: Equipment | None = None
        self._residence: residence.Residence | None = None
        #: Claims, loads, and then is the session.
        self._living: asyncio.Task[None] | None = None
        self._booted = asyncio.Event()
        #: Why it could not be loaded.
        self._refusal: protocol.Refusal | None = None
        self._over = asyncio.Event()
        self._lane: lane_server.LaneServer | None = None

    async def prepare(self) -> protocol.Prepared | protocol.Refusal:
        """Do all that does not depend on the session, before anybody waits for it."""
        try:
            self._equipment = await self._equip(self._spec)
            lane = await self._listen()
        except errors.TorporError as error:
            self.close()
            self._over.set()
            return protocol.refuse(error)
        why = "" if ray_compat.FORKED_BY in os.environ else os.environ.get(ray_compat.NOT_FORKED)
        unknown = "its node was not started with `torpor node start`"
        return protocol.Prepared(
            pid=os.getpid(), lane=lane, not_forked=unknown if why is None else why
        )

    async def bind(self, request: protocol.Bind) -> protocol.Refusal | None:
        """Begin to claim the session and to load it; calls to it are answered after that.

        A process is bound once, whatever becomes of it.
        """
        if self._living is not None or self._equipment is None:
            return protocol.refuse(errors.Fenced("this process was bound before"))
        if self._lane is not None:
            # Before the claim, since the head that it writes names the lane.
            claim = request.claim
            secret = lane_frames.Secret(claim.key, claim.observed_epoch + 1, claim.nonce)
            self._lane.secrets.append(secret)
        self._living = asyncio.create_task(self._live(request, self._equipment))
        return None

    async def booted(self) -> protocol.Refusal | None:
        """Await the end of the boot; on a refusal the process ends, and owns nothing for long."""
        await self._booted.wait()
        return self._refusal

    async def _live(self, request: protocol.Bind, equipment: "Equipment") -> None:
        try:
            try:
                self._residence = await self._boot(request, equipment)
            except errors.TorporError as error:
                self._refusal = protocol.refuse(error)
                return
            finally:
                self._booted.set()
            await self._residence.run()
        finally:
            self._over.set()

    async def _boot(self, request: protocol.Bind, equipment: "Equipment") -> residence.Residence:
        session, slot = str(request.claim.key), str(self._spec.slot)
        probes.reach(probes.Point.BOUND, session=session, slot=slot)
        spec = protocol.BootSpec(**msgspec.structs.asdict(self._spec), claim=request.claim)
        try:
            watch = stopwatch.Stopwatch(request.laps_ms)
            async with asyncio.timeout(request.boot_s) as limit:
                return await _take_up_residence(spec, equipment, watch)
        except errors.TorporError:
            raise
        except Exception as error:
            if limit.expired():
                raise errors.ActivationFailed(
                    f"the session was not loaded within {request.boot_s:.0f} s", session=session
                ) from None
            log.exception("boot failed", extra={"action": "boot_failed"})
            raise errors.ActivationFailed(
                f"the session could not be loaded: {error!r}", session=session
            ) from error

    async def _listen(self) -> str:
        """Listen for gateways; returns the lane's address, empty if there is none."""
        if not self._spec.host:
            return ""
        # Until it is bound, nobody but its maker knows what to say.
        maker = lane_frames.Secret(self._spec.slot.name, 0, self._spec.secret)
        self._lane = lane_server.LaneServer(maker, self.serve)
        try:
            return await self._lane.listen(self._spec.host, lane_address.sockets_folder())
        except OSError as error:
            log.warning("no lane: %s", error, extra={"action": "no_lane"})
            return ""

    async def serve(self, kind: lane_frames.Kind, payload: bytes) -> bytes:
        """Answer a call that came by the lane, as if Ray had brought it."""
        answer: object
        match kind:
            case lane_frames.Kind.DELIVER:
                return await self.deliver(payload)
            case lane_frames.Kind.CONTROL:
                answer = await self.control(protocol.unpack_control(payload))
            case lane_frames.Kind.PLACE_FILE:
                answer = await self.place_file(protocol.unpack_place_file(payload))
            case lane_frames.Kind.DRAIN_INBOX:
                answer = await self.drain_inbox(protocol.unpack_epoch(payload))
            case lane_frames.Kind.BIND:
                answer = await self.bind(protocol.unpack_bind(payload))
            case lane_frames.Kind.BOOTED:
                answer = await self.booted()
            case _:
                answer = protocol.refuse(errors.Internal(f"{kind.name} is not for a session"))
        return protocol.pack(answer)

    async def deliver(self, packed: bytes) -> bytes:
        """Handle a message in its turn; request and answer are packed."""
        request = protocol.unpack_deliver(packed)
        return protocol.pack(
            await self._queue(request, request.epoch, request.deadline_s, request.busy)
        )

    async def control(self, request: protocol.Control) -> protocol.Controlled | protocol.Refusal:
        """Evict, pause or resume, in order with the turns."""
        answer: protocol.Controlled | protocol.Refusal = await self._queue(
            request, request.epoch, request.deadline_s
        )
        return answer

    async def place_file(self, request: protocol.PlaceFile) -> protocol.Placed | protocol.Refusal:
        """Put a file into the workspace, in order with the turns."""
        answer: protocol.Placed | protocol.Refusal = await self._queue(
            request, request.epoch, request.deadline_s
        )
        return answer

    async def leave(self, request: protocol.Leave) -> protocol.Controlled | protocol.Refusal:
        """Give the slot back, unless something is under way."""
        here = self._residence
        if here is not None and not here.quiet():
            return protocol.refuse(errors.NotEvictable())
        answer: protocol.Controlled | protocol.Refusal = await self._queue(
            request, request.epoch, None
        )
        return answer

    async def drain_inbox(self, epoch: int) -> protocol.Refusal | None:
        """Look into the inbox soon; returns as soon as the session is up."""
        try:
            here = await self._up(epoch)
            here.put(protocol.DrainInbox())
        except errors.TorporError as error:
            return protocol.refuse(error)
        return None

    async def ping(self) -> int:
        """Return the epoch, whatever the agent's code is doing."""
        return 0 if self._residence is None else self._residence.epoch

    async def run_until_ended(self) -> None:
        """Await the session's end, then end the process."""
        await self._over.wait()
        await asyncio.sleep(LINGER_S if self._refusal is None else REFUSED_LINGER_S)
        self.close()
        ray.actor.exit_actor()

    def close(self) -> None:
        """Listen no more."""
        if self._lane is not None:
            self._lane.close()

    async def _up(self, epoch: int) -> residence.Residence:
        """Await the boot, which is bounded: callers may come before its end.

        Raises:
            Fenced: this is not that activation.
            TorporError: what the boot was refused with.
        """
        await self._booted.wait()
        here = protocol.accept(self._refusal or self._residence)
        if here is None or here.epoch != epoch:
            raise errors.Fenced(NOT_THE_OWNER)
        return here

    async def _queue(
        self,
        work: mailbox.Work,
        epoch: int,
        deadline_s: float | None,
        busy: protocol.BusyPolicy = protocol.BusyPolicy.ENQUEUE,
    ) -> Any:
        called_s = time.monotonic()
        try:
            here = await self._up(epoch)
            if deadline_s is not None:
                deadline_s -= time.monotonic() - called_s
            job = here.put(work, deadline_s=deadline_s, busy=busy)
        except errors.TorporError as error:
            return protocol.refuse(error)
        return await job.answer


class Equipment(NamedTuple):
    """What a process has before it is bound."""

    make: type[definition.Agent]
    store: store.Store
    blobs: blobs.BlobStore


Equip = Callable[[protocol.SlotSpec], Awaitable[Equipment]]


async def _equip(spec: protocol.SlotSpec) -> Equipment:
    """Import and connect.

    Raises:
        AgentImportFailed, StoreUnavailable, StoreBelowDurability
    """
    made = Equipment(
        agent_code.load(spec.agent.import_path),
        redis_store.open(spec.deployment, reads_wait=False),
        local_blobs.LocalBlobStore(spec.deployment.storage),
    )
    # Connects, and learns now what the first write would ask for.
    await made.store.check_durability()
    return made


async def _take_up_residence(
    spec: protocol.BootSpec, equipment: Equipment, watch: stopwatch.Stopwatch
) -> residence.Residence:
    """Claim and load: what can fail before the claim comes before it."""
    key, place = spec.claim.key, spec.deployment
    board = slot_board.SlotBoard(spec.slot / protocol.BOARD, os.getpid())
    captures = output.Captures(
        output.SessionLog(output.log_folder(place.storage, key), spec.claim.observed_epoch + 1)
    )
    owned = ownership.Ownership(
        store=equipment.store,
        blobs=equipment.blobs,
        keys=spec.keys,
        clock=clock.SystemClock(),
        agent=spec.agent,
    )
    acquired = await owned.claim(spec.claim)
    watch.lap("acquire")
    try:
        thread, snapshotter = await _load(spec, owned, acquired, equipment, watch)
    except BaseException as error:
        try:
            if isinstance(error, errors.TorporError):
                # It speaks of what was found with the claim.
                await owned.settle()
        finally:
            await owned.abandon()
            board.show(lifecycle.Phase.ENDED)
        raise
    made = residence.Residence(
        owned=owned,
        thread=thread,
        snapshotter=snapshotter,
        captures=captures,
        board=board,
        store=equipment.store,
        blobs=equipment.blobs,
        settings=spec.agent.settings,
        spec=spec,
        clock=clock.SystemClock(),
        watch=watch,
    )
    if acquired.inbox:
        # What is accepted from now on is followed by a call that says so.
        made.put(protocol.DrainInbox())
    return made


async def _load(
    spec: protocol.BootSpec,
    owned: ownership.Ownership,
    acquired: records.Acquired,
    equipment: Equipment,
    watch: stopwatch.Stopwatch,
) -> tuple[agent_thread.AgentThread, snapshot.Snapshotter]:
    session = str(spec.claim.key)
    probes.reach(probes.Point.RESTORE_BEFORE, session=session)
    waking = recovery.Waking(
        owned,
        equipment.store,
        equipment.blobs,
        spec.slot / protocol.WORKSPACE,
        spec.agent.settings.workspace_quota_bytes,
    )
    thread = await waking.wake(acquired, equipment.make, watch)
    probes.reach(probes.Point.RESTORE_AFTER, session=session, version=owned.head.version)
    return thread, waking.snapshotter
