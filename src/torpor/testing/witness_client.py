"""A tenant that speaks to witnesses through several gateways and records what it was told.

    recorder = recording.Recorder(pathlib.Path("operations.jsonl"))
    async with Client(tenant="red", gateways=[address], api_key=key, recorder=recorder) as client:
        await client.create("s1")
        operation = await client.append("s1")

No operation raises for what the deployment does: how it went is in the `Operation` returned.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from torpor import client, errors, ids, messages
from torpor.testing import recording, witness
from torpor.testing.recording import Ending, Kind, Operation, Reply

#: What one attempt ends with when it certainly had no effect: it was refused for what it is or asks
#: of whom, or a bound was reached before anything was done.
WITHOUT_EFFECT = (
    errors.InvalidArgument,
    errors.NotFound,
    errors.AlreadyExists,
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.SessionPaused,
    errors.SessionBusy,
    errors.NotEvictable,
    errors.ResourceExhausted,
)
#: The agent that `create` makes sessions of.
AGENT = "witness"
#: Attempts and the waits between them, which span more than a node's lease.
POLICY = client.Policy(attempts_max=8, first_s=0.1, most_s=2.0)
#: Of one attempt; the next one asks another gateway, if there is another.
ATTEMPT_TIMEOUT_S = 20.0

Ask = Callable[[client.Client], Awaitable["Told"]]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt that succeeded brought."""

    reply: Reply | None = None
    seen: tuple[recording.Seen, ...] = ()


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The history from some event to its end, as the checker reads it."""

    events: list[messages.Event]
    #: On the recorder's clock: what had ended before it is in the events.
    begun_s: float


class Client:
    """One tenant's view. Opens a connection to a gateway when it is first asked."""

    def __init__(
        self,
        *,
        tenant: str,
        gateways: Sequence[str],
        recorder: recording.Recorder,
        api_key: str | None = None,
        policy: client.Policy = POLICY,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
        agent: str = AGENT,
    ) -> None:
        self.tenant = tenant
        #: Addresses, in any order; may be replaced at any time.
        self.gateways = list(gateways)
        #: Session → the newest version that an answer told of.
        self.versions: dict[str, int] = {}
        self._api_key = api_key
        self._recorder = recorder
        self._policy = policy
        self._attempt_timeout_s = attempt_timeout_s
        self._agent = agent
        self._connected: dict[str, client.Client] = {}
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    # --- turns ------------------------------------------------------------------------------------

    async def append(
        self,
        session: str,
        *,
        token: str = "",
        request_id: str = "",
        gateway: str = "",
        data: dict[str, Any] | None = None,
    ) -> Operation:
        """Append a token and wait for the reply.

        Args:
            session: whose.
            token: a new one if empty.
            request_id: a new one if empty; with that of another append (and its token and data),
                the same request is delivered once more.
            gateway: asked first; any if empty.
            data: what `witness.Witness` understands.
        """
        token = token or ids.random_id("t")
        return await self._turn(
            Kind.APPEND, session, f"append {token}", request_id, gateway, data, token=token
        )

    async def read(self, session: str, *, gateway: str = "") -> Operation:
        """Have the witness say what is there; a turn that appends nothing."""
        return await self._turn(Kind.READ, session, "read", "", gateway, None)

    async def accept(
        self,
        session: str,
        *,
        token: str = "",
        request_id: str = "",
        gateway: str = "",
        data: dict[str, Any] | None = None,
    ) -> Operation:
        """Have a token accepted that is appended later."""
        token, request_id = token or ids.random_id("t"), request_id or ids.random_id("req")

        async def ask(connected: client.Client) -> Told:
            await connected.sessions.handle(session).post(
                f"append {token}", data=data, request_id=request_id
            )
            return Told()

        begun = self._begin(Kind.ACCEPT, session, request_id=request_id, token=token)
        return await self._tried(begun, ask, gateway)

    async def _turn(
        self,
        kind: Kind,
        session: str,
        text: str,
        request_id: str,
        gateway: str,
        data: dict[str, Any] | None,
        *,
        token: str = "",
    ) -> Operation:
        request_id = request_id or ids.random_id("req")
        min_version = self.versions.get(session, 0)

        async def ask(connected: client.Client) -> Told:
            reply = await connected.sessions.handle(session).send(
                text, data=data, request_id=request_id, min_version=min_version
            )
            return Told(
                reply=msgspec.convert(
                    reply.data
                    | {"seq": reply.seq, "version": reply.version, "repeated": reply.repeated},
                    Reply,
                )
            )

        begun = self._begin(
            kind, session, request_id=request_id, token=token, min_version=min_version
        )
        return await self._tried(begun, ask, gateway)

    # --- looking ----------------------------------------------------------------------------------

    async def get(self, session: str, *, gateway: str = "") -> Operation:
        """Read the session's description."""

        async def ask(connected: client.Client) -> Told:
            info = await connected.sessions.handle(session).get()
            return Told(reply=Reply(seq=info.last_seq, version=info.version))

        return await self._tried(self._begin(Kind.GET, session), ask, gateway)

    async def events(self, session: str, *, after_seq: int = 0, gateway: str = "") -> Operation:
        """Read the history behind an event to its end."""

        async def ask(connected: client.Client) -> Told:
            seen = tuple(
                [
                    recording.seen(event, token_type=witness.TOKEN)
                    async for event in connected.sessions.handle(session).events(after_seq)
                ]
            )
            if not seen:
                return Told()
            return Told(reply=Reply(seq=seen[-1].seq, version=seen[-1].version), seen=seen)

        begun = self._begin(Kind.EVENTS, session, after_seq=after_seq)
        return await self._tried(begun, ask, gateway)

    async def read_back(self, session: str, *, after_seq: int = 0) -> Reading:
        """Read the history behind an event for the checker; it is not recorded.

        Raises:
            TorporError: what the last gateway said, after as many tries as an operation has.
        """
        failures, gateway = 0, ""
        while True:
            begun_s = self._recorder.now_s()
            gateway = self._choose(last=gateway)
            handle = (await self._to(gateway)).sessions.handle(session)
            try:
                return Reading(
                    events=[event async for event in handle.events(after_seq)], begun_s=begun_s
                )
            except errors.TorporError as error:
                failures += 1
                if not error.retryable or failures >= self._policy.attempts_max:
                    raise
            await asyncio.sleep(self._policy.delay_s(failures))

    # --- steering ---------------------------------------------------------------------------------

    async def create(self, session: str, *, gateway: str = "") -> Operation:
        """Make a session of this id."""
        request_id = ids.random_id("req")

        async def ask(connected: client.Client) -> Told:
            await connected.sessions.create(self._agent, session_id=session, request_id=request_id)
            return Told()

        begun = self._begin(Kind.CREATE, session, request_id=request_id)
        return await self._tried(begun, ask, gateway)

    async def evict(self, session: str, *, gateway: str = "") -> Operation:
        """Put a session to sleep."""
        return await self._steered(Kind.EVICT, session, gateway)

    async def pause(self, session: str, *, gateway: str = "") -> Operation:
        """Let a session handle nothing."""
        return await self._steered(Kind.PAUSE, session, gateway)

    async def resume(self, session: str, *, gateway: str = "") -> Operation:
        """Let a session go on."""
        return await self._steered(Kind.RESUME, session, gateway)

    async def delete(self, session: str, *, gateway: str = "") -> Operation:
        """Delete a session for good."""
        return await self._steered(Kind.DELETE, session, gateway)

    async def foreign(self, session: str, *, gateway: str = "") -> Operation:
        """Try to describe, read, and write a session that another tenant has; one attempt each.

        The operation is `FAIL` with the reason of the first refusal that is not "not found", or
        with that one if all are; it is `OK` if anything was let through.
        """
        token = ids.random_id("t")
        begun = self._begin(Kind.FOREIGN, session, token=token)
        handle = (await self._to(gateway or self._choose())).sessions.handle(session)
        refusals: list[errors.TorporError] = []
        for attempt in (
            handle.get(timeout_s=self._attempt_timeout_s),
            handle.history(timeout_s=self._attempt_timeout_s),
            handle.send(f"append {token}", timeout_s=self._attempt_timeout_s),
        ):
            try:
                await attempt
            except errors.TorporError as error:
                refusals.append(error)
        if len(refusals) < 3:
            return self._recorder.end(begun, Ending.OK, attempts=3)
        other = [error for error in refusals if not isinstance(error, errors.SessionNotFound)]
        unknown = any(not isinstance(error, WITHOUT_EFFECT) for error in other)
        return self._recorder.end(
            begun,
            Ending.UNKNOWN if unknown else Ending.FAIL,
            reason=(other or refusals)[0].reason,
            attempts=3,
        )

    async def _steered(self, kind: Kind, session: str, gateway: str) -> Operation:
        async def ask(connected: client.Client) -> Told:
            handle = connected.sessions.handle(session)
            if kind is Kind.DELETE:
                await handle.delete()
                return Told()
            steer = {Kind.EVICT: handle.evict, Kind.PAUSE: handle.pause, Kind.RESUME: handle.resume}
            info = await steer[kind]()
            return Told(reply=Reply(seq=info.last_seq, version=info.version))

        return await self._tried(self._begin(kind, session), ask, gateway)

    # --- attempts ---------------------------------------------------------------------------------

    def _begin(self, kind: Kind, session: str, **fields: Any) -> Operation:
        return self._recorder.begin(kind, tenant=self.tenant, session=session, **fields)

    async def _tried(self, begun: Operation, ask: Ask, gateway: str) -> Operation:
        """Make attempts until one is answered for good, and record what can be said then."""
        certain, attempts, reason = True, 0, ""
        ending, told = Ending.UNKNOWN, Told()
        try:
            while attempts < self._policy.attempts_max:
                attempts += 1
                # Whatever breaks this attempt off, it may have had its effect.
                before, certain = certain, False
                if attempts > 1 or not gateway:
                    gateway = self._choose(last=gateway)
                try:
                    told = await ask(await self._to(gateway))
                except errors.TorporError as error:
                    reason = error.reason
                    if _final(error):
                        certain = True
                        break
                    certain = before and isinstance(error, WITHOUT_EFFECT)
                    if not error.retryable:
                        told = self._told_of_loss(begun.session, error)
                        break
                else:
                    ending, reason = Ending.OK, ""
                    break
                await asyncio.sleep(self._policy.delay_s(attempts))
        finally:
            if ending is Ending.UNKNOWN and certain:
                ending = Ending.FAIL
            if ending is Ending.OK and told.reply is not None:
                newest = max(self.versions.get(begun.session, 0), told.reply.version)
                self.versions[begun.session] = newest
            ended = self._recorder.end(
                begun,
                ending,
                reason=reason,
                reply=told.reply,
                seen=told.seen,
                gateway=gateway,
                attempts=attempts,
            )
        return ended

    def _told_of_loss(self, session: str, error: errors.TorporError) -> Told:
        if not isinstance(error, errors.HistoryGap) or "version" not in error.ids:
            return Told()
        # What is lost stays lost: the session goes on from what is left.
        self.versions[session] = int(error.ids["version"])
        return Told(reply=Reply(version=self.versions[session]))

    def _choose(self, last: str = "") -> str:
        """Return a gateway, another than the last one if there is another."""
        others = [each for each in self.gateways if each != last]
        return random.choice(others or self.gateways)  # noqa: S311 - which one matters to nobody

    async def _to(self, gateway: str) -> client.Client:
        if gateway not in self._connected:
            self._connected[gateway] = await self._open.enter_async_context(
                client.connect(
                    gateway,
                    api_key=self._api_key,
                    timeout_s=self._attempt_timeout_s,
                    # What came of each attempt is to be seen here.
                    policy=client.Policy(attempts_max=1),
                )
            )
        return self._connected[gateway]


def _final(error: errors.TorporError) -> bool:
    """Whether an error is the request's committed outcome, which all its attempts share."""
    return isinstance(error, errors.TurnFailed) and "seq" in error.ids
