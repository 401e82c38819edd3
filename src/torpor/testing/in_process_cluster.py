"""A cluster without Ray: nodes and session owners in this process, for tests of the router.

Its sessions answer each message with `echo: ` and the text, and commit the turn to the store,
fenced as real ones are. Nodes can be made to refuse, to fall silent and to die.
"""

import asyncio
from collections.abc import Callable

import msgspec

from torpor import definition, errors, ids, messages
from torpor.actors import protocol, rollback
from torpor.storage import records, store

#: Of the nodes' leases, by the store's clock.
LEASE_MS = 10_000


class Node:
    """One node, and how it behaves."""

    def __init__(self, name: str, sessions_max: int) -> None:
        self.name = name
        self.incarnation = ids.random_id("inc")
        self.sessions_max = sessions_max
        self.beat = 0
        self.cpu = 0.0
        self.draining = False
        #: Neither its agent nor its sessions answer; its lease goes on standing until it lapses.
        self.silent = False
        #: Raised by activations.
        self.refusal: errors.TorporError | None = None
        #: What lives here: session → owner's epoch and nonce.
        self.residents: dict[records.SessionKey, tuple[int, str]] = {}


class InProcessCluster:
    """`torpor.actors.calls.Calls` over nodes in this process."""

    def __init__(self, stored: store.Store, *, nodes: int = 3, sessions_max: int = 100) -> None:
        self._store = stored
        self.nodes = {
            name: Node(name, sessions_max) for name in (f"node-{i}" for i in range(nodes))
        }
        #: (method, session or node), in order.
        self.calls: list[tuple[str, str]] = []
        #: Owners that live but do not answer: their process hangs.
        self.hung: set[records.SessionKey] = set()
        #: Awaited in each turn, for tests that need one to last.
        self.gate: Callable[[], asyncio.Future[None]] | None = None
        self.settings = definition.AgentSettings()

    async def start(self) -> None:
        """Announce all nodes, with leases and loads."""
        for node in self.nodes.values():
            await self._store.nodes.claim_lease(node.name, node.incarnation, ttl_ms=LEASE_MS)
            await self._store.nodes.announce(
                records.NodeRecord(
                    node=node.name,
                    name=node.name,
                    incarnation=node.incarnation,
                    agent_actor=protocol.node_agent_name(node.name),
                    gateway="",
                    sessions_max=node.sessions_max,
                    cpus=2.0,
                    memory_bytes=4 << 30,
                    started_ms=0,
                )
            )
        await self.beat()

    async def beat(self) -> None:
        """Publish every node's load and renew its lease; silent nodes do neither."""
        for node in self.nodes.values():
            if node.silent:
                continue
            node.beat += 1
            await self._store.nodes.renew_lease(node.name, node.incarnation, ttl_ms=LEASE_MS)
            await self._store.nodes.publish_load(
                records.NodeLoad(
                    node=node.name,
                    incarnation=node.incarnation,
                    beat=node.beat,
                    sessions=len(node.residents),
                    activating=0,
                    sessions_max=node.sessions_max,
                    cpu=node.cpu,
                    memory=0.0,
                    draining=node.draining,
                )
            )

    def count(self, method: str) -> int:
        """Return how often a method was called."""
        return sum(name == method for name, _ in self.calls)

    async def activate(
        self, node: records.NodeRecord, request: protocol.Activate, *, timeout_s: float
    ) -> protocol.Activated:
        """Take ownership, or refuse as the node is told to."""
        self.calls.append(("activate", node.node))
        here = self._answering(node.node)
        epoch = request.observed_epoch + 1
        # A real activation takes long enough for others to come in between.
        await asyncio.sleep(0)
        return await self._wake(here, request, epoch, f"{request.key}.{epoch}")

    async def _wake(
        self, here: Node, request: protocol.Activate, epoch: int, actor: str
    ) -> protocol.Activated:
        if here.refusal is not None:
            raise here.refusal
        owner = records.Owner(node=here.name, incarnation=here.incarnation, actor=actor)
        nonce = ids.nonce()
        await self._store.sessions.acquire(
            records.Acquire(
                key=request.key,
                observed_epoch=request.observed_epoch,
                observed_incarnation=request.observed_incarnation,
                owner=owner,
                nonce=nonce,
            )
        )
        here.residents[request.key] = (epoch, nonce)
        return protocol.Activated(epoch=epoch, owner=owner, nonce=nonce)

    async def bury(
        self, node: str, key: records.SessionKey, epoch: int, *, timeout_s: float
    ) -> bool:
        """Clear the owner if it is dead or hangs."""
        self.calls.append(("bury", node))
        here = self._answering(node)
        lives = here.residents.get(key, (0, ""))[0] == epoch and key not in self.hung
        if not lives:
            self.kill(key)
            await self._store.sessions.vacate(key, epoch=epoch, incarnation=here.incarnation)
        return not lives

    async def inspect_agent(
        self, node: str, import_path: str, *, timeout_s: float
    ) -> protocol.AgentDescription:
        """Describe an agent that takes its name from the class."""
        self.calls.append(("inspect_agent", node))
        self._answering(node)
        module, _, name = import_path.partition(":")
        if not name:
            raise errors.AgentImportFailed(f"{import_path} has no class", import_path=module)
        return protocol.AgentDescription(
            import_path=import_path,
            default_name=name.lower(),
            digest=f"digest of {import_path}",
            settings=self.settings,
        )

    async def drain(self, node: str, *, timeout_s: float) -> None:
        """Let everything on the node go."""
        self.calls.append(("drain", node))
        here = self._answering(node)
        here.draining = True
        for key in list(here.residents):
            await self._release(here, key)
        await self.beat()

    async def deliver(
        self, seat: protocol.Seat, request: protocol.Deliver, *, timeout_s: float
    ) -> protocol.Delivered:
        """Echo, as a committed turn; a request id that is known is answered from the history."""
        key = seat.key
        self.calls.append(("deliver", str(key)))
        nonce = self._resident(seat)
        if self.gate is not None:
            await self.gate()
        head = await self._store.sessions.head(key)
        rollback.demand(head, request.min_version)
        return await self._turn(key, request.epoch, nonce, request.message, request.body_digest)

    async def control(
        self, seat: protocol.Seat, request: protocol.Control, *, timeout_s: float
    ) -> protocol.Controlled:
        """Evict, pause or resume."""
        key = seat.key
        self.calls.append((f"control {request.verb}", str(key)))
        nonce = self._resident(seat)
        if request.verb is protocol.Verb.EVICT:
            await self._release(self.nodes[seat.owner.node], key)
        else:
            paused = request.verb is protocol.Verb.PAUSE
            await self._commit(
                key,
                request.epoch,
                nonce,
                [(messages.SESSION_PAUSED if paused else messages.SESSION_RESUMED, {})],
                status=records.Status.PAUSED if paused else records.Status.IDLE,
            )
        return protocol.Controlled(version=(await self._store.sessions.head(key)).version)

    async def place_file(
        self, seat: protocol.Seat, request: protocol.PlaceFile, *, timeout_s: float
    ) -> protocol.Placed:
        """Commit that a file was written; the manifest stays as it is."""
        self.calls.append(("place_file", request.path))
        nonce = self._resident(seat)
        data = {"path": request.path, "digest": request.digest}
        committed = await self._commit(
            seat.key, seat.epoch, nonce, [(messages.WORKSPACE_WRITTEN, data)]
        )
        return protocol.Placed(version=committed.version)

    async def drain_inbox(self, seat: protocol.Seat, *, timeout_s: float) -> None:
        """Handle what waits in the inbox."""
        key = seat.key
        self.calls.append(("drain_inbox", str(key)))
        nonce = self._resident(seat)
        for item in await self._store.sessions.inbox(key):
            await self._turn(key, seat.epoch, nonce, item.message, item.body_digest, inbox=True)

    def kill(self, key: records.SessionKey) -> None:
        """End the session's process without a word."""
        self.hung.discard(key)
        for node in self.nodes.values():
            node.residents.pop(key, None)

    def _answering(self, name: str) -> Node:
        node = self.nodes[name]
        if node.silent:
            raise errors.OwnerUnreachable(node=name)
        return node

    def _resident(self, seat: protocol.Seat) -> str:
        key, residents = seat.key, self._answering(seat.owner.node).residents
        if key in self.hung or key not in residents:
            raise errors.OwnerUnreachable(session=key.session)
        resident_epoch, nonce = residents[key]
        if (resident_epoch, nonce) != (seat.epoch, seat.nonce):
            raise errors.Fenced(session=key.session)
        return nonce

    async def _release(self, node: Node, key: records.SessionKey) -> None:
        epoch, nonce = node.residents.pop(key)
        await self._store.sessions.release(
            key,
            epoch=epoch,
            nonce=nonce,
            expected_version=(await self._store.sessions.head(key)).version,
        )

    async def _turn(
        self,
        key: records.SessionKey,
        epoch: int,
        nonce: str,
        message: messages.Message,
        body_digest: str,
        *,
        inbox: bool = False,
    ) -> protocol.Delivered:
        text = f"echo: {message.text}"
        known = await self._store.sessions.outcome(key, message.request_id)
        if known is not None and known.state is records.OutcomeState.DONE:
            return protocol.Delivered(
                text=text, data={}, seq=known.seq, version=known.version, repeated=True
            )
        head = await self._store.sessions.head(key)
        if head.status is records.Status.PAUSED:
            raise errors.SessionPaused(session=key.session)
        outcome = records.Outcome(
            body_digest=body_digest,
            state=records.OutcomeState.DONE,
            version=head.version + 1,
            seq=head.next_seq + 1,
        )
        asked = {"text": message.text, "request_id": message.request_id}
        committed = await self._commit(
            key,
            epoch,
            nonce,
            [(messages.USER_MESSAGE, asked), (messages.AGENT_MESSAGE, {"text": text})],
            outcomes={message.request_id: outcome},
            consumed=[message.request_id] if inbox else [],
        )
        return protocol.Delivered(
            text=text, data={}, seq=committed.next_seq - 1, version=committed.version
        )

    async def _commit(
        self,
        key: records.SessionKey,
        epoch: int,
        nonce: str,
        happened: list[tuple[str, dict[str, str]]],
        **changes: object,
    ) -> records.Committed:
        head = await self._store.sessions.head(key)
        commit = records.Commit(
            key=key,
            epoch=epoch,
            nonce=nonce,
            expected_version=head.version,
            commit_id=ids.random_id("commit"),
            events=[
                messages.Event(
                    seq=head.next_seq + i, type=kind, data=data, version=head.version + 1, at_ms=0
                )
                for i, (kind, data) in enumerate(happened)
            ],
        )
        return await self._store.sessions.commit(msgspec.structs.replace(commit, **changes))
