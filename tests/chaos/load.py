"""The load that runs while things break: sessions of two tenants, called at an even pace."""

import asyncio
import collections
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import jobs
from torpor import client, errors
from torpor.testing import recording, witness_client
from torpor.testing.recording import Ending, Operation

if TYPE_CHECKING:
    from report import Account
    from world import World

TENANTS = ("red", "blue")
#: In the pool, of each tenant; a node has a few of them.
POOL = 6
#: Of each tenant: sessions that nothing is done to but calls, for what is measured.
QUIET = 2
#: Operations under way; more are not sent. Enough for what waits for a gateway that hangs.
IN_FLIGHT_MAX = 96
#: A pause of this process is made up for by no more than so many seconds of operations at once.
CATCH_UP_S = 0.2
#: A gateway that hangs holds one attempt no longer.
ATTEMPT_TIMEOUT_S = 5.0
#: The file of a witness's tokens is stored anew with every token: beyond so many appends another
#: session takes the place.
APPENDS_MAX = 300
#: Deleted sessions that are asked for again.
DELETED_MAX = 20
#: A gateway is healthy after so many answers in a row.
IN_A_ROW = 5
#: Between two tries to find something healthy.
PROBE_PAUSE_S = 0.1
#: All that makes a session: its first one needs a node that is up.
CREATE_TIMEOUT_S = 60.0

#: Right answers, though they are refusals: the load itself paused or deleted that session.
_RIGHT_REFUSALS = (errors.SessionPaused.reason, errors.SessionDeleted.reason)


class Load:
    """Calls the sessions of a world, as an async context manager; made for one run.

    Everything is chosen by `rng`, in the order in which it is due.
    """

    def __init__(
        self,
        world: "World",
        recorder: recording.Recorder,
        rng: random.Random,
        *,
        rate_per_s: float,
    ) -> None:
        self.world = world
        self.recorder = recorder
        #: May be changed at any time.
        self.rate_per_s = rate_per_s
        #: Who the operations that begin now are counted for.
        self.accounts: Sequence[Account] = ()
        #: Operations that were due while too many were under way.
        self.not_sent = 0
        #: What operations raised: they never should, whatever the deployment does.
        self.failures: list[str] = []
        self._rng = rng
        self._made: collections.Counter[str] = collections.Counter()
        self.pool = [self._slot(tenant) for tenant in TENANTS for _ in range(POOL)]
        self.quiet = [self._slot(tenant) for tenant in TENANTS for _ in range(QUIET)]
        #: Sessions that were replaced since the battery looked; perhaps not deleted.
        self.former: list[jobs.Slot] = []
        self._deleted: collections.deque[jobs.Slot] = collections.deque(maxlen=DELETED_MAX)
        self._clients: dict[str, witness_client.Client] = {}
        self._once: dict[str, witness_client.Client] = {}
        self._count = 0
        self._tasks: set[asyncio.Task[object]] = set()
        self._open = contextlib.AsyncExitStack()
        self._pacer: asyncio.Task[None] | None = None
        self._going = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Create all sessions and begin.

        Raises:
            TimeoutError: the world did not create them.
        """
        for tenant in TENANTS:
            self._clients[tenant] = await self._client(tenant, witness_client.POLICY)
            self._once[tenant] = await self._client(tenant, client.Policy(attempts_max=1))
            # One client to the sessions: what the one was told, the other asks for.
            self._once[tenant].versions = self._clients[tenant].versions
        async with asyncio.timeout(CREATE_TIMEOUT_S):
            await asyncio.gather(*(self._create(slot) for slot in self.slots))
        self._pacer = asyncio.create_task(self._pace())
        self.resume()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; what is under way stays so in the record."""
        tasks = [*self._tasks, *([self._pacer] if self._pacer else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._open.aclose()

    @property
    def slots(self) -> list[jobs.Slot]:
        """All of them, with those that nothing else is done to."""
        return self.pool + self.quiet

    # --- what the battery asks for ----------------------------------------------------------------

    async def append(self, slot: jobs.Slot, *, gateway: str = "", once: bool = False) -> Operation:
        """Append one token, with `once` in a single attempt."""
        clients = self._once if once else self._clients
        slot.appends += 1
        return await self._did(
            slot, clients[slot.tenant].append(slot.session, gateway=gateway or self._any_gateway())
        )

    async def evict(self, slot: jobs.Slot) -> Operation:
        """Put a session to sleep."""
        return await self._did(slot, self._clients[slot.tenant].evict(slot.session))

    async def call_everybody(self) -> None:
        """Call all sessions at once."""
        await asyncio.gather(*(self.append(slot) for slot in self.slots))

    async def read_back(self, slot: jobs.Slot, after_seq: int) -> witness_client.Reading:
        """Read a session's history behind an event, for the checker.

        Raises:
            TorporError: it cannot be read.
        """
        return await self._clients[slot.tenant].read_back(slot.session, after_seq=after_seq)

    async def healthy(self, timeout_s: float) -> float | None:
        """Return after how many seconds every gateway and every session answered, None if not.

        A gateway has to answer `IN_A_ROW` times in a row, by itself; a session once.
        """
        begun_s = time.monotonic()
        gateways = [node.gateway for node in self.world.nodes.values()]
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(
                    *(self._gateway_answers(gateway) for gateway in gateways),
                    *(self._session_answers(slot) for slot in self.slots),
                )
        except TimeoutError:
            return None
        return time.monotonic() - begun_s

    async def pause(self, timeout_s: float) -> bool:
        """Begin nothing more, and wait for what is under way; False if that does not end.

        Every session has answered once more then, so that what was lost has been told.
        """
        self._going.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await asyncio.gather(*(self._session_answers(slot) for slot in self.slots))
        except TimeoutError:
            return False
        return True

    def resume(self) -> None:
        """Go on."""
        self._going.set()

    async def delete(self, slot: jobs.Slot) -> Operation:
        """Delete a session once more; one that is deleted stays so."""
        return await self._did(slot, self._clients[slot.tenant].delete(slot.session))

    async def retire_long(self) -> None:
        """Replace the sessions that have become long."""
        for slot in self.slots:
            if slot.appends > APPENDS_MAX:
                await self._replace(slot, self._any_gateway())

    # --- pace -------------------------------------------------------------------------------------

    async def _pace(self) -> None:
        due_s = time.monotonic()
        while True:
            await self._going.wait()
            now_s = time.monotonic()
            due_s = max(due_s, now_s - CATCH_UP_S) + 1 / self.rate_per_s
            # Chosen even if it is not sent, so that the choices after it stay the same.
            job = self._choose()
            if len(self._tasks) < IN_FLIGHT_MAX:
                self._start(self._do(job))
            else:
                self.not_sent += 1
            await asyncio.sleep(max(0.0, due_s - now_s))

    def _start(self, work: Awaitable[object]) -> None:
        task: asyncio.Task[object] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(f"{type(error).__name__}: {error}")

    def _choose(self) -> jobs.Job:
        self._count += 1
        return jobs.choose(
            self._rng,
            number=self._count,
            pool=self.pool,
            deleted=self._deleted,
            gateways=self.world.gateways,
        )

    async def _do(self, job: jobs.Job) -> None:
        slot, gateway = job.slot, job.gateways[0]
        asked = self._clients[slot.tenant]
        session = slot.session
        match job.verb:
            case "append" | "accept":
                slot.appends += 1
                await self._deliver(job, asked.append if job.verb == "append" else asked.accept)
            case "read":
                await self._did(slot, asked.read(session, gateway=gateway))
            case "events":
                after_seq = max(0, slot.seq - job.back)
                await self._did(slot, asked.events(session, after_seq=after_seq, gateway=gateway))
            case "get" | "deleted":
                await self._did(slot, asked.get(session, gateway=gateway))
            case "foreign":
                await self._did(slot, asked.foreign(job.other, gateway=gateway))
            case "pause":
                await self._did(slot, asked.pause(session, gateway=gateway))
                await self._did(slot, asked.resume(session))
            case "evict":
                await self._did(slot, asked.evict(session, gateway=gateway))
            case "replace":
                await self._replace(slot, gateway)

    async def _deliver(self, job: jobs.Job, ask: Callable[..., Awaitable[Operation]]) -> None:
        session = job.slot.session
        await asyncio.gather(
            *(
                self._did(
                    job.slot,
                    ask(
                        session,
                        token=f"t{job.number}",
                        request_id=f"r{job.number}",
                        gateway=job.gateways[copy % len(job.gateways)],
                        data=job.data,
                    ),
                )
                for copy in range(self.world.duplicate)
            )
        )

    async def _did(self, slot: jobs.Slot, asked: Awaitable[Operation]) -> Operation:
        """Await an operation, and count it for whoever it began with."""
        accounts = self.accounts
        operation = await asked
        for account in accounts:
            account.operations[operation.ending] += 1
        # A late answer may be of the session that was here before.
        if operation.session == slot.session and operation.reply is not None:
            slot.seq = max(slot.seq, operation.reply.seq)
        return operation

    # --- sessions come and go ---------------------------------------------------------------------

    def _slot(self, tenant: str) -> jobs.Slot:
        return jobs.Slot(tenant, self._name(tenant))

    def _name(self, tenant: str) -> str:
        self._made[tenant] += 1
        return f"{tenant}-{self._made[tenant]}"

    async def _client(self, tenant: str, policy: client.Policy) -> witness_client.Client:
        return await self._open.enter_async_context(
            witness_client.Client(
                tenant=tenant,
                gateways=self.world.gateways,
                recorder=self.recorder,
                api_key=self.world.api_keys[tenant],
                policy=policy,
                attempt_timeout_s=ATTEMPT_TIMEOUT_S,
            )
        )

    async def _create(self, slot: jobs.Slot) -> None:
        asked = self._clients[slot.tenant]
        while True:
            created = await self._did(slot, asked.create(slot.session))
            if created.ending is Ending.OK:
                return
            await asyncio.sleep(PROBE_PAUSE_S)

    async def _replace(self, slot: jobs.Slot, gateway: str) -> None:
        """Delete the session of a slot; another one takes its place."""
        if slot.replacing:
            return
        slot.replacing = True
        try:
            asked = self._clients[slot.tenant]
            former = jobs.Slot(slot.tenant, slot.session)
            with contextlib.suppress(errors.TorporError):
                former.last = await asked.read_back(slot.session, after_seq=0)
            deleted = await self._did(slot, asked.delete(slot.session, gateway=gateway))
            if deleted.ending is Ending.FAIL:
                return
            name = self._name(slot.tenant)
            await self._did(slot, asked.create(name))
            self._deleted.append(former)
            self.former.append(former)
            slot.session, slot.appends, slot.seq = name, 0, 0
        finally:
            slot.replacing = False

    # --- health -----------------------------------------------------------------------------------

    async def _gateway_answers(self, gateway: str) -> None:
        in_a_row = 0
        while in_a_row < IN_A_ROW:
            operation = await self.append(self._rng_free(self.pool), gateway=gateway, once=True)
            if operation.ending is Ending.OK:
                in_a_row += 1
            elif operation.reason not in _RIGHT_REFUSALS:
                in_a_row = 0
                await asyncio.sleep(PROBE_PAUSE_S)

    async def _session_answers(self, slot: jobs.Slot) -> None:
        asked = self._once[slot.tenant]
        while True:
            operation = await self.append(slot, once=True)
            if operation.ending is Ending.OK:
                return
            if operation.reason == errors.SessionPaused.reason:
                # A resume of the load's own may have been lost.
                await self._did(slot, asked.resume(slot.session))
            elif operation.reason == errors.SessionNotFound.reason:
                await self._did(slot, asked.create(slot.session))
            await asyncio.sleep(PROBE_PAUSE_S)

    def _any_gateway(self) -> str:
        return str(self._rng_free(self.world.gateways))

    @staticmethod
    def _rng_free(choices: Sequence[Any]) -> Any:
        """Choose what does not matter, without moving the choices that a seed brings again."""
        return random.choice(choices)


def appends(operations: Iterable[Operation]) -> int:
    """Return how many of them append a token, awaited or accepted."""
    kinds = (recording.Kind.APPEND, recording.Kind.ACCEPT)
    return sum(operation.kind in kinds for operation in operations)
