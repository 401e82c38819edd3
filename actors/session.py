"""The Ray actor that a live session is.

One process, one activation: it is booted once, works, and ends. Everything that matters is in
`torpor.actors.residence`; this is its shell: checks the epoch, queues, awaits the answer.
"""

import asyncio
import logging
import os
import time
from typing import Any

import ray

from torpor import clock, definition, errors, probes
from torpor.actors import (
    agent_code,
    agent_thread,
    lifecycle,
    mailbox,
    output,
    ownership,
    protocol,
    recovery,
    residence,
    slot_board,
)
from torpor.storage import local_blobs, records, redis_store, snapshot

log = logging.getLogger(__name__)

#: Ray's own calls in flight to one session: a full mailbox, and the calls that never wait in it.
CONCURRENCY_MAX = 128
#: After its session has ended a process stays this long, so that answers under way get out.
LINGER_S = 0.2
NOT_THE_OWNER = "this process does not own that epoch"


class AgentSession:
    """A session's owner, as gateways and the node agent call it. Errors return as `Refusal`."""

    def __init__(self) -> None:
        self._residence: residence.Residence | None = None
        self._living: asyncio.Task[None] | None = None
        self._booted = asyncio.Event()
        self._over = asyncio.Event()

    async def boot(self, spec: protocol.BootSpec) -> protocol.Booted | protocol.Refusal:
        """Claim the session and load it; on a refusal nothing is owned and the process ends."""
        try:
            return await self._boot(spec)
        finally:
            self._booted.set()

    async def _boot(self, spec: protocol.BootSpec) -> protocol.Booted | protocol.Refusal:
        try:
            self._residence = await _take_up_residence(spec)
        except errors.TorporError as error:
            self._over.set()
            return protocol.refuse(error)
        except Exception as error:
            log.exception("boot failed", extra={"action": "boot_failed"})
            self._over.set()
            return protocol.refuse(
                errors.ActivationFailed(f"the session could not be loaded: {error!r}")
            )
        self._residence.put(protocol.DrainInbox())
        self._living = asyncio.create_task(self._live(self._residence))
        return protocol.Booted(epoch=self._residence.epoch, pid=os.getpid())

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
        here = await self._up()
        if here is None or here.epoch != epoch:
            return protocol.refuse(errors.Fenced(NOT_THE_OWNER))
        try:
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
        await asyncio.sleep(LINGER_S)
        ray.actor.exit_actor()

    async def _up(self) -> residence.Residence | None:
        """Await the boot, which the node's agent bounds: the head names this owner before its end.

        Else a caller who reads the head meanwhile would be sent away, only to come back here.
        """
        await self._booted.wait()
        return self._residence

    async def _live(self, here: residence.Residence) -> None:
        try:
            await here.run()
        finally:
            self._over.set()

    async def _queue(
        self,
        work: mailbox.Work,
        epoch: int,
        deadline_s: float | None,
        busy: protocol.BusyPolicy = protocol.BusyPolicy.ENQUEUE,
    ) -> Any:
        called_s = time.monotonic()
        here = await self._up()
        if here is None or here.epoch != epoch:
            return protocol.refuse(errors.Fenced(NOT_THE_OWNER))
        if deadline_s is not None:
            deadline_s -= time.monotonic() - called_s
        try:
            job = here.put(work, deadline_s=deadline_s, busy=busy)
        except errors.TorporError as error:
            return protocol.refuse(error)
        return await job.answer


async def _take_up_residence(spec: protocol.BootSpec) -> residence.Residence:
    """Import, claim, load: everything that can fail before the claim comes before it."""
    key, place = spec.claim.key, spec.deployment
    board = slot_board.SlotBoard(spec.slot / protocol.BOARD, os.getpid())
    make = agent_code.load(spec.agent.import_path)
    captures = output.Captures(
        output.SessionLog(output.log_folder(place.storage, key), spec.claim.observed_epoch + 1)
    )
    store = redis_store.open(place, reads_wait=False)
    blobs = local_blobs.LocalBlobStore(place.storage)
    owned = ownership.Ownership(
        store=store, blobs=blobs, keys=spec.keys, clock=clock.SystemClock(), agent=spec.agent
    )
    acquired = await owned.claim(spec.claim)
    try:
        thread, snapshotter = await _load(spec, owned, acquired, make, store, blobs)
    except BaseException:
        await owned.abandon()
        board.show(lifecycle.Phase.ENDED)
        raise
    return residence.Residence(
        owned=owned,
        thread=thread,
        snapshotter=snapshotter,
        captures=captures,
        board=board,
        store=store,
        blobs=blobs,
        settings=spec.agent.settings,
        spec=spec,
        clock=clock.SystemClock(),
    )


async def _load(
    spec: protocol.BootSpec,
    owned: ownership.Ownership,
    acquired: records.Acquired,
    make: type[definition.Agent],
    store: redis_store.RedisStore,
    blobs: local_blobs.LocalBlobStore,
) -> tuple[agent_thread.AgentThread, snapshot.Snapshotter]:
    session = str(spec.claim.key)
    probes.reach(probes.Point.RESTORE_BEFORE, session=session)
    waking = recovery.Waking(
        owned,
        store,
        blobs,
        spec.slot / protocol.WORKSPACE,
        spec.agent.settings.workspace_quota_bytes,
    )
    thread = await waking.wake(acquired, make)
    probes.reach(probes.Point.RESTORE_AFTER, session=session, version=owned.head.version)
    return thread, waking.snapshotter
