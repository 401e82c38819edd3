"""Witnesses in this process, a world around them, and faults: for tests of the battery itself."""

import asyncio
import contextlib
import itertools
import pathlib
import random
import types
from collections.abc import AsyncIterator, Callable
from typing import Any

import fault
import load
from torpor import errors, messages
from torpor.testing import recording, witness, witness_client
from torpor.testing.recording import Ending, Kind, Operation, Reply

GATEWAYS = ("gateway-1", "gateway-2", "gateway-3")


@contextlib.asynccontextmanager
async def harmless(_world: Any, _rng: random.Random) -> AsyncIterator[None]:
    """A fault that breaks nothing."""
    yield


def a_fault(name: str, cost: fault.Cost = fault.Cost.CHEAP, **fields: Any) -> fault.Fault:
    """Return a fault of this name; harmless unless `inject` says otherwise."""
    return fault.Fault(**{"name": name, "cost": cost, "inject": harmless, **fields})


class Session:
    """A witness's history."""

    def __init__(self) -> None:
        self.events: list[messages.Event] = []
        self.tokens: list[str] = []
        self.version = 0
        self.replies: dict[str, Reply] = {}
        self.commit((messages.SESSION_CREATED, {}))

    def commit(self, *happened: tuple[str, dict[str, Any]]) -> None:
        """Commit events."""
        self.version += 1
        for kind, data in happened:
            seq = len(self.events) + 1
            self.events.append(
                messages.Event(seq=seq, type=kind, data=data, version=self.version, at_ms=0)
            )

    def turn(self, request_id: str, token: str = "") -> Reply:
        """Handle a request, once."""
        if request_id not in self.replies:
            happened = []
            if token:
                self.tokens.append(token)
                counted = {"n": len(self.tokens), "chain": witness.chain_of(self.tokens)}
                happened.append((witness.TOKEN, {"token": token, **counted}))
            n, chain = len(self.tokens), witness.chain_of(self.tokens)
            data: dict[str, Any] = {"n": n, "chain": chain, "state_n": n, "state_chain": chain}
            data |= {"file_n": n, "file_chain": chain}
            happened.append((messages.AGENT_MESSAGE, {"request_id": request_id, "data": data}))
            self.commit(*happened)
            reply = Reply(seq=len(self.events), version=self.version, **data)
            self.replies[request_id] = reply
        return self.replies[request_id]

    def lose(self) -> None:
        """Go back by one version, and say so."""
        lost, kept = self.version, self.version - 1
        gone = [event.seq for event in self.events if event.version > kept]
        self.events = [event for event in self.events if event.version <= kept]
        self.tokens = [event.data["token"] for event in self.events if event.type == witness.TOKEN]
        self.version = kept
        data = {"from_version": lost, "to_version": kept, "lost": {"events": gone}}
        self.commit((messages.SESSION_RECOVERED, data))

    def lose_state(self) -> None:
        """Have a state and files that are not as they were, with nothing else lost; and say so."""
        data = {"from_version": self.version, "to_version": self.version, "lost": {}}
        self.commit((messages.SESSION_RECOVERED, data))


class Service:
    """All sessions, and how the service behaves."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.deleted: set[str] = set()
        #: Nothing is answered.
        self.away = False
        #: What is asked of another tenant's sessions is let through.
        self.leaky = False
        self.leaked = asyncio.Event()


class Client:
    """`witness_client.Client` over a service in this process."""

    def __init__(self, service: Service, **fields: Any) -> None:
        self.versions: dict[str, int] = {}
        self.service = service
        self.tenant: str = fields["tenant"]
        self.recorder: recording.Recorder = fields["recorder"]
        self.numbers = itertools.count()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def append(
        self, session: str, *, token: str = "", request_id: str = "", **_: Any
    ) -> Operation:
        """A turn that appends."""
        token = token or f"{id(self)}-{next(self.numbers)}"
        return await self.turn(Kind.APPEND, session, request_id or token, token)

    async def accept(self, session: str, *, token: str, request_id: str, **_: Any) -> Operation:
        """The same; its turn comes at once."""
        return await self.turn(Kind.ACCEPT, session, request_id, token)

    async def read(self, session: str, **_: Any) -> Operation:
        """A turn that looks."""
        return await self.turn(Kind.READ, session, f"{id(self)}-{next(self.numbers)}", "")

    async def turn(self, kind: Kind, session: str, request_id: str, token: str) -> Operation:
        """Have a turn."""
        return await self.asked(
            kind, session, lambda held: held.turn(request_id, token), request_id, token
        )

    async def get(self, session: str, **_: Any) -> Operation:
        """Describe it."""
        return await self.looked(Kind.GET, session)

    async def evict(self, session: str, **_: Any) -> Operation:
        """Nothing to do."""
        return await self.looked(Kind.EVICT, session)

    async def pause(self, session: str, **_: Any) -> Operation:
        """Nothing to do."""
        return await self.looked(Kind.PAUSE, session)

    async def resume(self, session: str, **_: Any) -> Operation:
        """Nothing to do."""
        return await self.looked(Kind.RESUME, session)

    async def events(self, session: str, **_: Any) -> Operation:
        """Told of the newest event alone."""
        return await self.looked(Kind.EVENTS, session)

    async def looked(self, kind: Kind, session: str) -> Operation:
        """Be told the newest event."""
        return await self.asked(
            kind, session, lambda held: Reply(seq=len(held.events), version=held.version)
        )

    async def create(self, session: str) -> Operation:
        """Make a session."""
        self.service.sessions.setdefault(f"{self.tenant}/{session}", Session())
        return await self.asked(Kind.CREATE, session, lambda _: None)

    async def delete(self, session: str, **_: Any) -> Operation:
        """Delete it."""
        begun = self.recorder.begin(Kind.DELETE, tenant=self.tenant, session=session)
        await asyncio.sleep(0)
        self.service.deleted.add(begun.key)
        return self.recorder.end(begun, Ending.OK)

    async def foreign(self, session: str, **_: Any) -> Operation:
        """Try another tenant's session."""
        begun = self.recorder.begin(
            Kind.FOREIGN,
            tenant=self.tenant,
            session=session,
            token=f"f{id(self)}-{next(self.numbers)}",
        )
        await asyncio.sleep(0)
        if self.service.leaky:
            self.service.leaked.set()
            return self.recorder.end(begun, Ending.OK)
        return self.recorder.end(begun, Ending.FAIL, reason=errors.SessionNotFound.reason)

    async def read_back(self, session: str, *, after_seq: int) -> witness_client.Reading:
        """Return the events behind one."""
        begun_s = self.recorder.now_s()
        events = self.service.sessions[f"{self.tenant}/{session}"].events
        return witness_client.Reading(events=events[after_seq:], begun_s=begun_s)

    async def asked(
        self,
        kind: Kind,
        session: str,
        answer: Callable[[Session], Reply | None],
        request_id: str = "",
        token: str = "",
    ) -> Operation:
        """Record one operation."""
        begun = self.recorder.begin(
            kind, tenant=self.tenant, session=session, request_id=request_id, token=token
        )
        await asyncio.sleep(0)
        if self.service.away:
            return self.recorder.end(begun, Ending.UNKNOWN, reason=errors.Unavailable.reason)
        if begun.key in self.service.deleted:
            return self.recorder.end(begun, Ending.FAIL, reason=errors.SessionDeleted.reason)
        reply = answer(self.service.sessions[begun.key])
        if kind is Kind.ACCEPT:
            reply = None
        return self.recorder.end(begun, Ending.OK, reply=reply)


class World:
    """What the battery needs of a world."""

    lease_ttl_ms = 50

    def __init__(self, folder: pathlib.Path) -> None:
        self.gateways = list(GATEWAYS)
        self.nodes = {gateway: types.SimpleNamespace(gateway=gateway) for gateway in GATEWAYS}
        self.api_keys = dict.fromkeys(load.TENANTS, "key")
        self.damaged: list[Any] = []
        self.duplicate = 1
        self.call_everybody: Any = None
        self.probes = types.SimpleNamespace(folder=folder / "probes")
        self.probes.folder.mkdir(parents=True)
        self.store = types.SimpleNamespace(sessions=self)
        self.service = Service()

    def keep_room(self) -> None:
        """Nothing is stored."""

    async def inbox(self, _key: object) -> list[object]:
        """Everything accepted had its turn."""
        return []

    async def residents(self) -> list[Any]:
        """Nobody has a process."""
        return []
