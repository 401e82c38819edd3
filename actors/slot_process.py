"""One slot of a node: a folder, a process, one activation, then gone."""

import asyncio
import contextlib
import functools
import logging
import os
import pathlib
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import ray

from torpor import errors, ids
from torpor.actors import (
    disposal,
    eviction,
    lane,
    lane_address,
    lane_frames,
    load_meter,
    protocol,
    slot_board,
    slot_stock,
)
from torpor.storage import records, restore, store

log = logging.getLogger(__name__)

#: A killed process is gone within milliseconds; past this it hangs in the kernel (a dead NFS
#: server).
DEATH_TIMEOUT_S = 10.0
#: An owner that answers a ping within this lives.
PING_TIMEOUT_S = 2.0
#: A session that is asked to leave does so within this, or is asked whether it lives.
LEAVE_TIMEOUT_S = 30.0
#: A process that may own its session no more, and is not in a turn, is gone within this.
LEAVES_S = 5.0


class Slot:
    """One session process on this node, from its creation to the removal of what it left."""

    def __init__(self, kind: slot_stock.Kind, actor: str, folder: pathlib.Path) -> None:
        self.kind = kind
        #: The Ray actor's name.
        self.actor = actor
        self.folder = folder
        self.handle: Any = None
        self.pid: int | None = None
        #: Where the process listens; see `records.Owner`.
        self.lane = ""
        #: What binds it, and the lane on which that is said; without one Ray carries it.
        self.secret = ids.nonce()
        self._way: lane.Lane | None = None
        self.board: slot_board.SlotBoardReader | None = None
        #: Whether it is being asked to leave.
        self.leaving = False
        #: Set once the process is proven dead.
        self.dead = asyncio.Event()
        #: Called with the process's death, once it has loaded its session.
        self.on_death: Callable[[Slot], None] = lambda _: None
        # What it is bound to.
        self.key: records.SessionKey
        self.owner: records.Owner
        self.epoch = 0
        self.nonce = ""
        #: By when it has to be loaded, by the monotonic clock.
        self.boot_ends_s = 0.0

    @property
    def agent(self) -> records.AgentVersion:
        """Whose sessions it is for."""
        return self.kind.agent

    @property
    def lives(self) -> bool:
        """Whether its process runs."""
        return self.pid is not None and not self.dead.is_set()

    def bind(self, claim: records.Acquire) -> None:
        """Make it that activation's, for good."""
        self.key, self.epoch, self.nonce = claim.key, claim.observed_epoch + 1, claim.nonce
        self.owner = claim.owner

    async def connect(self) -> None:
        """Open the way on which it will be bound, before anybody waits for that."""
        if not self.lane:
            return
        secret = lane_frames.Secret(self.folder.name, 0, self.secret)
        try:
            self._way = await lane.Lane.connect(
                self.actor, self.lane, secret, same_node=True, on_end=lambda _: None
            )
        except (OSError, TimeoutError, errors.TorporError) as error:
            log.info("bound through Ray: %r", error, extra={"action": "no_lane"})

    async def begin(self, request: protocol.Bind, timeout_s: float) -> None:
        """Have its process begin to claim and load the session; it takes calls from now on.

        Raises:
            Fenced: it was bound before.
            OwnerUnreachable, TimeoutError, RayError: it does not answer.
        """
        through_ray = functools.partial(self.handle.bind.remote, request)
        await self._ask(lane_frames.Kind.BIND, request, through_ray, timeout_s)

    async def booted(self, timeout_s: float) -> None:
        """Await that the session is loaded.

        Raises:
            OwnerUnreachable, TimeoutError, RayError: it does not answer.
            TorporError: why it could not be loaded.
        """
        try:
            through_ray = self.handle.booted.remote
            await self._ask(lane_frames.Kind.BOOTED, None, through_ray, timeout_s)
        finally:
            if self._way is not None:
                self._way.close()

    async def _ask(
        self,
        kind: lane_frames.Kind,
        request: object,
        through_ray: Callable[[], Awaitable[protocol.Refusal | None]],
        timeout_s: float,
    ) -> None:
        if self._way is None:
            answer = await asyncio.wait_for(through_ray(), timeout_s)
        else:
            packed = protocol.pack(request)
            answer = protocol.unpack_done(await self._way.call(kind, packed, timeout_s=timeout_s))
        protocol.accept(answer)

    def watch(self) -> None:
        """Have `on_death` called as soon as the process ends: the kernel tells, nobody polls."""
        loop = asyncio.get_running_loop()
        assert self.pid is not None  # noqa: S101 — for the type checker
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            loop.call_soon(self._died)
            return

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self._died()

        loop.add_reader(descriptor, ended)

    def _died(self) -> None:
        self.dead.set()
        self.on_death(self)

    async def end(self) -> None:
        """End its process, whatever it does."""
        if self.handle is not None:
            ray.kill(self.handle)
        with contextlib.suppress(errors.OwnerUnreachable):
            await self.kill()

    async def discard(self) -> None:
        """End it, and remove what it has."""
        await self.end()
        self.close()
        await clean(self.folder)

    def activity(self) -> slot_board.Activity | None:
        """Return what its board says; None before there is one."""
        if self.board is None:
            self.board = slot_board.SlotBoardReader.open(self.folder / protocol.BOARD)
        return None if self.board is None else self.board.read()

    def candidate(self) -> eviction.Candidate | None:
        """Return what tells whether it should leave; None if it is asked to already, or unknown."""
        activity = self.activity()
        if self.leaving or activity is None:
            return None
        return eviction.Candidate(
            slot=self.folder.name,
            activity=activity,
            idle_timeout_s=self.agent.settings.idle_timeout_s,
            rss_bytes=load_meter.process_rss_bytes(activity.pid),
        )

    def close(self) -> None:
        """Let its board go, and the socket that a process which was killed has left."""
        if self._way is not None:
            self._way.close()
        if self.board is not None:
            self.board.close()
            self.board = None
        if self.lane and self.dead.is_set():
            lane_address.remove_socket(self.lane)

    async def kill(self) -> None:
        """End the process at once and await its death.

        Raises:
            OwnerUnreachable: it did not die within `DEATH_TIMEOUT_S`, so nothing may be assumed.
        """
        if self.pid is None or self.dead.is_set():
            return  # the number may be another process's by now
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        try:
            await asyncio.wait_for(self.dead.wait(), DEATH_TIMEOUT_S)
        except TimeoutError:
            raise errors.OwnerUnreachable(
                f"process {self.pid} does not die", actor=self.actor
            ) from None

    async def answers(self) -> bool:
        """Whether the process lives and is what it was started for."""
        try:
            epoch = await asyncio.wait_for(self.handle.ping.remote(), PING_TIMEOUT_S)
        except (TimeoutError, ray.exceptions.RayError):
            return False
        return bool(epoch == self.epoch)

    async def end_if_silent(self) -> None:
        """Kill the process if it does not answer."""
        if not await self.answers():
            await self.kill()

    async def ask_to_leave(self) -> None:
        """Ask the session to leave unless it is busy; end a process that does not even say no."""
        self.leaving = True
        try:
            leave = self.handle.leave.remote(protocol.Leave(epoch=self.epoch))
            await asyncio.wait_for(leave, LEAVE_TIMEOUT_S)
        except TimeoutError:
            await self.end_if_silent()
        except ray.exceptions.RayError:
            return  # it is dead or dying; its death is seen by other means
        finally:
            self.leaving = False

    async def evict(self) -> None:
        """Ask the session to leave after what it has begun."""
        request = protocol.Control(
            epoch=self.epoch,
            verb=protocol.Verb.EVICT,
            request_id=ids.random_id("evict"),
            deadline_s=self.agent.settings.turn_timeout_s,
        )
        # If it is dead or dying, its death is seen by other means.
        with contextlib.suppress(ray.exceptions.RayError):
            await self.handle.control.remote(request)

    async def is_forgotten(self, sessions: store.Sessions) -> bool:
        """Whether the store does not know its process as the session's owner.

        Raises:
            StoreUnavailable
        """
        with contextlib.suppress(errors.NotFound):
            return (await sessions.head(self.key)).nonce != self.nonce
        return True

    async def leaves(self) -> bool:
        """Ask the session to leave, and await the end of its process for a while."""
        try:
            async with asyncio.timeout(LEAVES_S):
                await self.evict()
                await self.dead.wait()
        except TimeoutError:
            return False
        return True


async def clean(folder: pathlib.Path) -> None:
    """Kill what still works in a slot's folder, then remove the folder."""
    await disposal.aside(_kill_below, folder)
    # What resists is tried again when the node's agent starts.
    with contextlib.suppress(OSError):
        await disposal.aside(restore.discard, folder)


def _kill_below(folder: pathlib.Path) -> None:
    prefix = f"{folder}{os.sep}"
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if f"{(entry / 'cwd').readlink()}{os.sep}".startswith(prefix):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
