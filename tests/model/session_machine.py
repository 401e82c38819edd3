"""A session with its processes, clients and accidents, as a Hypothesis state machine.

Real code on a real server, without Ray. After each step, all that was promised must be true.
"""

import asyncio
import contextlib
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Coroutine
from typing import Any

from breakable_process import Fate, Killed, Process
from hypothesis import stateful
from hypothesis import strategies as st

from torpor import deployment, errors, ids, limits, messages, probes
from torpor.actors import ownership, protocol
from torpor.router import wake_sweeper, waking
from torpor.storage import (
    envelope,
    history,
    local_blobs,
    records,
    redis_store,
    restore,
    state,
)
from torpor.testing import activations, clock, proxy, valkey, witness

#: Processes at a time: one owner, and those that do not know yet that they were replaced.
PROCESSES_MAX = 3
TENANT = activations.KEYS.tenant

Point = probes.Point
KILLS = st.sampled_from(
    [
        Point.BLOB_BEFORE,
        Point.BLOB_AFTER,
        Point.COMMIT_BEFORE,
        Point.COMMIT_AFTER,
        Point.REPLY_BEFORE,
        Point.SEAL_BEFORE,
        Point.SEAL_AFTER,
        Point.RELEASE_BEFORE,
        Point.RELEASE_AFTER,
    ]
)
LOSSES = st.sampled_from([Point.COMMIT_BEFORE, Point.RELEASE_BEFORE, Point.SEAL_BEFORE])
#: How many claims lose their answers, too, after a commit did; the last is more than are tried.
CLAIMS_LOST = st.sampled_from([0, 1, ownership.RESOLVE_TRIES_MAX + 1])
WHICH = st.integers(0, PROCESSES_MAX - 1)
#: Tokens are few, so that the same request comes again, and often.
TOKENS = st.integers(0, 14).map(lambda number: f"t{number}")


class Nobody:
    """A router that wakes nobody: here the machine does."""

    async def drain_inbox(self, key: records.SessionKey, until: object) -> None:
        """Leave it to the sweep."""


class Sessions(stateful.RuleBasedStateMachine):
    """One session, its processes, a gateway, and what was promised to clients."""

    server: valkey.Server

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="torpor-machine-"))
        self.outputs = sys.stdout, sys.stderr
        self.processes: list[Process] = []
        #: Token → how many there were with it, as a client was told.
        self.told: dict[str, int] = {}
        self.accepted: set[str] = set()
        self.sent: set[str] = set()
        self.newest = (0, 0)
        self.deleted = False
        self.files: dict[str, list[str]] = {"": []}
        self.run(self._open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run one step."""
        return self.loop.run_until_complete(work)

    async def _open(self) -> None:
        self.link = proxy.Proxy(self.server.port)
        await self.link.__aenter__()
        self.fate = Fate(self.link)
        probes._here = self.fate  # type: ignore[assignment]
        # What looks, and what a client's gateway uses: the first goes past the proxy.
        self.store, self.gateway = (self._store(each.url) for each in (self.server, self.link))
        self.blobs = local_blobs.LocalBlobStore(self.folder)
        self.key = await activations.new_session(self.store)
        time = clock.FakeClock()
        self.waker = waking.Waker(self.gateway, Nobody(), time)  # type: ignore[arg-type]
        self.sweeper = wake_sweeper.WakeSweeper(self.gateway, self.waker, time, None)  # type: ignore[arg-type]

    def _store(self, url: str) -> redis_store.RedisStore:
        return redis_store.open(
            deployment.Deployment(
                store_url=url,
                storage=self.folder,
                scratch=self.folder,
                signing_key_file=self.folder / "unused",
            )
        )

    # --- what happens ---------------------------------------------------------------------------

    @stateful.rule(kill=st.none() | st.sampled_from([Point.ACQUIRE_BEFORE, Point.ACQUIRE_AFTER]))
    def wake(self, kill: Point | None) -> None:
        """A new process takes the session, whoever had it: that one does not know."""
        self.run(self._wake(kill, None))

    @stateful.rule()
    def wake_unheard(self) -> None:
        """A claim is carried out, and its answer is lost."""
        self.run(self._wake(None, Point.ACQUIRE_BEFORE))

    @stateful.rule(which=WHICH, token=TOKENS)
    def send(self, which: int, token: str) -> None:
        """A client sends a message, perhaps again; which process gets it is any gateway's guess."""
        self.run(self._step(self._send(which, token)))

    @stateful.rule(which=WHICH, token=TOKENS, kill=KILLS)
    def send_and_die(self, which: int, token: str, kill: Point) -> None:
        """The process dies on the way."""
        self.run(self._step(self._send(which, token), kill=kill))

    @stateful.rule(which=WHICH, token=TOKENS, lose=LOSSES, claims=CLAIMS_LOST)
    def send_unheard(self, which: int, token: str, lose: Point, claims: int) -> None:
        """The store's answers are lost from some point on."""
        self.run(self._step(self._send(which, token), lose=lose, claims=claims))

    @stateful.rule(which=WHICH, token=TOKENS)
    def send_unsent(self, which: int, token: str) -> None:
        """The commit itself is lost, which looks the same from here."""
        self.run(self._step(self._send(which, token), swallow=True))

    @stateful.rule(which=WHICH, token=TOKENS)
    def send_cut_off(self, which: int, token: str) -> None:
        """The store cannot be reached."""
        self.run(self._cut_off(self._send(which, token)))

    @stateful.rule(token=TOKENS)
    def send_to_all(self, token: str) -> None:
        """The same message reaches all processes at once."""
        self.run(self._step(self._send_to_all(token)))

    @stateful.rule(token=TOKENS, cut_off=st.booleans())
    def accept(self, token: str, cut_off: bool) -> None:
        """A gateway accepts a message durably."""
        step = self._cut_off if cut_off else self._step
        self.run(step(self._accept(token)))

    @stateful.rule(which=WHICH, kill=st.none() | KILLS)
    def empty_inbox(self, which: int, kill: Point | None) -> None:
        """A process is asked to look into the inbox."""
        self.run(self._step(self._ask(which, protocol.DrainInbox()), kill=kill))

    @stateful.rule()
    def sweep(self) -> None:
        """A gateway looks at the hint."""
        self.run(self._step(self.sweeper._look(self.key)))

    @stateful.rule(which=WHICH, kill=st.none() | KILLS, lose=st.booleans())
    def evict(self, which: int, kill: Point | None, lose: bool) -> None:
        """A process is asked to leave."""
        work = self._ask(which, protocol.Leave(epoch=0))
        self.run(self._step(work, kill=kill, lose=Point.RELEASE_BEFORE if lose else None))

    @stateful.rule(which=WHICH, verb=st.sampled_from([protocol.Verb.PAUSE, protocol.Verb.RESUME]))
    def pause_or_resume(self, which: int, verb: protocol.Verb) -> None:
        """A person decides."""
        work = protocol.Control(epoch=0, verb=verb, request_id="r", deadline_s=60.0)
        self.run(self._step(self._ask(which, work)))

    @stateful.rule(which=WHICH)
    def kill(self, which: int) -> None:
        """A process dies while nothing is under way."""
        if which < len(self.processes):
            self.run(self.processes.pop(which).kill())

    @stateful.rule(which=WHICH)
    def bury(self, which: int) -> None:
        """A process is taken for dead, rightly or not, and its owner's entry cleared."""
        if which < len(self.processes):
            self.run(self._step(self._bury(self.processes[which])))

    @stateful.rule()
    def restart_store(self) -> None:
        """The store's server is killed and started again on its files."""
        self.run(asyncio.to_thread(self.server.restart))

    @stateful.rule(sure=st.integers(0, 29))
    def delete(self, sure: int) -> None:
        """A person deletes the session: rarely, for little can happen after it."""
        if sure == 17:
            self.run(self._step(self.gateway.sessions.delete(self.key)))
            self.deleted = True

    # --- how ------------------------------------------------------------------------------------

    async def _step(
        self,
        work: Coroutine[Any, Any, Any],
        *,
        kill: Point | None = None,
        lose: Point | None = None,
        claims: int = 0,
        swallow: bool = False,
    ) -> None:
        self.fate.swallow_commit = swallow
        self.fate.kill_at, self.fate.lose_at, self.fate.claims_lost = kill, lose, claims
        with contextlib.suppress(errors.TorporError, Killed):
            await work
        await self.fate.clear()
        for process in self.processes:
            if not process.serving:
                await process.kill()
        self.processes = [process for process in self.processes if process.serving]

    async def _cut_off(self, work: Coroutine[Any, Any, Any]) -> None:
        await self.link.set_mode(proxy.Mode.DOWN)
        await self._step(work)

    async def _wake(self, kill: Point | None, lose: Point | None) -> None:
        # The claim that is to be lost is the first one.
        await self._step(self._add_process(), kill=kill, lose=lose, claims=1)

    async def _add_process(self) -> None:
        while len(self.processes) >= PROCESSES_MAX:
            await self.processes.pop(0).kill()
        process = Process(self.link.url, self.folder)
        try:
            await process.wake(self.key)
        except BaseException:
            await process.kill()
            raise
        self.processes.append(process)

    async def _ask(self, which: int, work: Any) -> Any:
        if not self.processes:
            # As a gateway does; what is armed is for the work.
            armed, self.fate.kill_at = self.fate.kill_at, None
            await self._add_process()
            self.fate.kill_at = armed
        return await self.processes[-1 - which % len(self.processes)].ask(work)

    async def _send(self, which: int, token: str) -> None:
        self.sent.add(token)
        delivered = await self._ask(
            which,
            protocol.Deliver(
                epoch=0,
                message=messages.Message(text=f"append {token}", request_id=token),
                body_digest=token,
                busy=protocol.BusyPolicy.ENQUEUE,
                deadline_s=60.0,
            ),
        )
        if delivered.error is not None:
            return
        data = delivered.data
        assert data["n"] == data["state_n"] == data["file_n"], data
        assert data["chain"] == data["state_chain"] == data["file_chain"], data
        assert self.told.setdefault(token, data["n"]) == data["n"]

    async def _send_to_all(self, token: str) -> None:
        everywhere = (self._send(which, token) for which in range(len(self.processes)))
        for came in await asyncio.gather(*everywhere, return_exceptions=True):
            if isinstance(came, AssertionError):
                raise came

    async def _accept(self, token: str) -> None:
        self.sent.add(token)
        message = messages.Message(text=f"append {token}", request_id=token)
        await self.waker.accept(self.key, message, body_digest=token)
        self.accepted.add(token)

    async def _bury(self, process: Process) -> None:
        await self.store.sessions.vacate(
            self.key, epoch=process.epoch, incarnation=activations.OWNER.incarnation
        )

    # --- what must hold -------------------------------------------------------------------------

    @stateful.invariant()
    def promises_are_kept(self) -> None:
        """State, files and history are one; what was acknowledged is there once, or waits."""
        self.run(self._check())

    async def _check(self) -> None:
        waiting = {item.message.request_id for item in await self.store.sessions.inbox(self.key)}
        try:
            head = await self.store.sessions.head(self.key)
        except errors.SessionDeleted:
            assert self.deleted
            assert not waiting
            return
        assert not self.deleted
        assert (head.epoch, head.version) >= self.newest
        self.newest = (head.epoch, head.version)
        past = history.History(self.store.sessions, self.blobs, self.key)
        events = await past.read(0, head.next_seq - 1)
        assert [event.seq for event in events] == list(range(1, head.next_seq))
        tokens = [event.data["token"] for event in events if event.type == witness.TOKEN]
        assert len(set(tokens)) == len(tokens), tokens
        assert set(tokens) <= self.sent
        places = {token: place for place, token in enumerate(tokens, 1) if token in self.told}
        assert places == self.told
        assert self.accepted <= waiting.union(tokens), (self.accepted, waiting, tokens)
        assert await self._state_tokens(head) == tokens
        assert self._file_tokens(head.manifest) == tokens
        if waiting & self.accepted - set(tokens) and head.owner is None:
            assert head.status is records.Status.PAUSED or await self._hinted()

    async def _state_tokens(self, head: records.Head) -> list[str]:
        if head.checkpoint is None:
            return []
        newest = (await self.store.sessions.restore_points(self.key))[0]
        assert newest.inline_state is not None
        _, payload = envelope.open(newest.inline_state, head.checkpoint, activations.KEYS)
        agent = state.load(payload)
        assert isinstance(agent, witness.Witness)
        return agent.tokens

    def _file_tokens(self, manifest: str) -> list[str]:
        if manifest not in self.files:
            place = self.folder / ids.random_id("look")
            restore.restore(manifest, place, self.blobs, TENANT)
            path = place / witness.TOKENS_FILE
            self.files[manifest] = path.read_text().splitlines() if path.exists() else []
            shutil.rmtree(place)
        return self.files[manifest]

    async def _hinted(self) -> bool:
        for shard in range(limits.WAKE_SHARDS):
            if self.key in await self.store.wake.hinted(shard, limit=limits.WAKE_SWEEP_MAX):
                return True
        return False

    def teardown(self) -> None:
        """Everything heals: whatever was accepted is done. Then nothing of the machine is left."""
        try:
            self.run(self._heal())
        finally:
            self.run(self._close())
            self.loop.close()
            probes._here = None
            sys.stdout, sys.stderr = self.outputs
            shutil.rmtree(self.folder)

    async def _heal(self) -> None:
        if self.deleted:
            return
        await self._wake(None, None)
        resume = protocol.Control(
            epoch=0, verb=protocol.Verb.RESUME, request_id="r", deadline_s=60.0
        )
        await self.processes[-1].ask(resume)
        await self.processes[-1].ask(protocol.DrainInbox())
        await self._check()
        assert await self.store.sessions.inbox(self.key) == []
        assert not await self._hinted()

    async def _close(self) -> None:
        for process in self.processes:
            await process.kill()
        await self.waker.close()
        for opened in (self.gateway, self.store):
            await opened.close()
        await self.link.__aexit__(None, None, None)
