"""The slots of one node: a folder, a process, one activation, then gone."""

import asyncio
import contextlib
import logging
import os
import pathlib
import shutil
import signal
from collections.abc import Callable
from typing import Any

import ray

from torpor import deployment, errors
from torpor.actors import protocol, session, slot_board
from torpor.storage import keyring, records

log = logging.getLogger(__name__)

#: A killed process is gone within milliseconds; past this it hangs in the kernel (a dead NFS
#: server).
DEATH_TIMEOUT_S = 10.0
#: An owner that answers a ping within this lives.
PING_TIMEOUT_S = 2.0
#: A session that is asked to leave does so within this, or is asked whether it lives.
LEAVE_TIMEOUT_S = 30.0


class Slot:
    """One session process on this node, from its creation to the removal of what it left."""

    def __init__(
        self, key: records.SessionKey, epoch: int, nonce: str, actor: str, folder: pathlib.Path
    ) -> None:
        self.key = key
        self.epoch = epoch
        self.nonce = nonce
        #: The Ray actor's name.
        self.actor = actor
        self.folder = folder
        self.agent: records.AgentVersion
        self.handle: Any = None
        self.pid: int | None = None
        self.board: slot_board.SlotBoardReader | None = None
        #: Whether it is being asked to leave.
        self.leaving = False
        #: Set once the process is proven dead.
        self.dead = asyncio.Event()

    def activity(self) -> slot_board.Activity | None:
        """Return what its board says; None before there is one."""
        if self.board is None:
            self.board = slot_board.SlotBoardReader.open(self.folder / protocol.BOARD)
        return None if self.board is None else self.board.read()

    def close(self) -> None:
        """Let its board go."""
        if self.board is not None:
            self.board.close()
            self.board = None

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
                f"process {self.pid} does not die", session=str(self.key)
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


class SlotMaker:
    """Makes slots for one incarnation of a node's agent."""

    def __init__(
        self, place: deployment.Deployment, keys: keyring.Keyring, *, node: str, node_name: str
    ) -> None:
        self._place = place
        self._keys = keys
        self._node = node
        self._node_name = node_name
        self._root = place.scratch / node_name / "slots"
        # Wrapped once: wrapping again would export the class to the cluster again.
        self._actor_class: Any = ray.remote(session.AgentSession)

    async def make(
        self,
        request: protocol.Activate,
        incarnation: str,
        nonce: str,
        on_death: Callable[[Slot], None],
    ) -> Slot:
        """Start a process and let it claim and load the session.

        Raises:
            AlreadyWaking: this attempt is under way elsewhere.
            TorporError: what the boot was refused with; the process is gone or about to be.
        """
        epoch = request.observed_epoch + 1
        name = f"{request.key.tenant}.{request.key.session}.{epoch}.{nonce[:8]}"
        actor = protocol.session_actor_name(request.key, epoch, request.attempt)
        slot = Slot(request.key, epoch, nonce, actor, self._root / name)
        slot.agent = request.agent
        try:
            slot.folder.mkdir(parents=True)
            slot.handle = await asyncio.to_thread(self._create, actor)
            spec = self._spec(request, incarnation, nonce, actor, slot.folder)
            boot = slot.handle.boot.remote(spec)
            booted = protocol.accept(await asyncio.wait_for(boot, request.deadline_s))
        except ray.exceptions.ActorAlreadyExistsError as error:
            await self._discard(slot)
            raise errors.AlreadyWaking(session=str(request.key)) from error
        except (OSError, ray.exceptions.RayError, ValueError) as error:
            await self._discard(slot)
            raise errors.ActivationFailed(
                f"the session's process did not come up: {type(error).__name__}: {error}",
                session=str(request.key),
            ) from error
        except errors.TorporError:
            await self._discard(slot)
            raise
        slot.pid = booted.pid
        slot.handle.run_until_ended.remote()
        _watch(slot, on_death)
        return slot

    def _create(self, actor: str) -> object:
        return self._actor_class.options(
            name=actor,
            namespace=protocol.NAMESPACE,
            num_cpus=0,
            max_restarts=0,
            max_concurrency=session.CONCURRENCY_MAX,
            label_selector={"ray.io/node-id": self._node},
            enable_task_events=False,
        ).remote()

    def _spec(
        self,
        request: protocol.Activate,
        incarnation: str,
        nonce: str,
        actor: str,
        folder: pathlib.Path,
    ) -> protocol.BootSpec:
        return protocol.BootSpec(
            deployment=self._place,
            claim=records.Acquire(
                key=request.key,
                observed_epoch=request.observed_epoch,
                observed_incarnation=request.observed_incarnation,
                owner=records.Owner(node=self._node, incarnation=incarnation, actor=actor),
                nonce=nonce,
            ),
            agent=request.agent,
            keys=self._keys.for_tenant(request.key.tenant),
            node_name=self._node_name,
            slot=folder,
        )

    async def _discard(self, slot: Slot) -> None:
        if slot.handle is not None:
            ray.kill(slot.handle)
        await clean(slot.folder)

    async def clean_leftovers(self) -> None:
        """Remove what earlier incarnations of this node left: processes first, then folders."""
        for folder in sorted(self._root.glob("*")):
            await clean(folder)


def _watch(slot: Slot, on_death: Callable[[Slot], None]) -> None:
    """Call `on_death` once, as soon as the process ends: the kernel tells, nobody polls."""
    loop = asyncio.get_running_loop()
    assert slot.pid is not None  # noqa: S101 — for the type checker
    try:
        descriptor = os.pidfd_open(slot.pid)
    except ProcessLookupError:
        slot.dead.set()
        loop.call_soon(on_death, slot)
        return

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        slot.dead.set()
        on_death(slot)

    loop.add_reader(descriptor, ended)


async def clean(folder: pathlib.Path) -> None:
    """Kill what still works in a slot's folder, then remove the folder."""
    await asyncio.to_thread(_kill_below, folder)
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


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
