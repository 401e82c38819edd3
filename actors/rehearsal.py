"""A session's life, played before there is any, so that what it warms is warm in every fork.

The first pass through code costs several times what a later one does: the interpreter specializes
what it runs, and libraries make what they will need again. A fork server plays such lives with an
agent, a store and a folder that are nobody's, and leaves nothing open. Its children have what was
learnt, in memory that all of them share.
"""

import asyncio
import contextlib
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent import futures

from torpor import context, definition, deployment, ids, messages, probes
from torpor.actors import lane, lane_frames, protocol, session
from torpor.storage import keyring, local_blobs, memory_store, records

#: Python 3.11 specializes a function after eight calls of it, later ones sooner.
LIVES = 9
#: All lives together take a fifth of a second, on a node that is busy longer; what this leaves out
#: is not played. Whoever waits for the fork server waits for it.
LIVES_TIMEOUT_S = 3.0
#: The last of them ends its threads within this.
THREADS_END_S = 1.0
TENANT = "rehearsal"


class Actor(definition.Agent):
    """Has state, a file and something to say, as real agents do."""

    def __init__(self) -> None:
        self.heard = 0

    async def on_message(self, ctx: context.Context, message: messages.Message) -> messages.Reply:
        """Count, and write it down."""
        self.heard += 1
        (ctx.workspace / "heard").write_text(str(self.heard))
        return messages.Reply(text=message.text, data={"heard": self.heard})


def rehearse() -> None:
    """Play as many lives as there is time for.

    Afterwards threads are as before, and descriptors once garbage is collected: a session leaves
    its log and its board open for the end of its process to close.

    Raises:
        Exception: why sessions cannot live here.
    """
    before = set(threading.enumerate())
    try:
        with (
            tempfile.TemporaryDirectory(prefix="torpor-") as folder,
            probes.unseen(),
            _unchanged(),
            # Not on the main thread: whose loop was closed is refused another one.
            futures.ThreadPoolExecutor(1) as apart,
        ):
            apart.submit(asyncio.run, _lives(pathlib.Path(folder))).result()
    finally:
        ends_s = time.monotonic() + THREADS_END_S
        for thread in set(threading.enumerate()) - before:
            thread.join(max(0.0, ends_s - time.monotonic()))


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """Put back what a session takes for its own."""
    streams = sys.stdout, sys.stderr
    with contextlib.chdir("."):
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams


async def _lives(folder: pathlib.Path) -> None:
    store = memory_store.MemoryStore()
    equipment = session.Equipment(Actor, store, local_blobs.LocalBlobStore(folder))
    key = records.SessionKey(TENANT, ids.random_id("session"))
    await store.sessions.create(
        records.NewSession(key=key, agent="actor", agent_version=1, request_id="", created_ms=0)
    )
    try:
        async with asyncio.timeout(LIVES_TIMEOUT_S) as limit:
            for number in range(LIVES):
                slot = folder / str(number)
                slot.mkdir()
                await _life(_spec(folder, slot), equipment, await store.sessions.head(key))
    except TimeoutError:
        if not limit.expired():
            raise


async def _life(spec: protocol.SlotSpec, equipment: session.Equipment, head: records.Head) -> None:
    """Bind, send a message, evict, as node agents and gateways do."""

    async def equip(_: protocol.SlotSpec) -> session.Equipment:
        return equipment

    process, epoch = session.AgentSession(spec, equip), head.epoch + 1
    try:
        address = protocol.accept(await process.prepare()).lane
        owner = records.Owner(node="n", incarnation="n", actor=spec.slot.name, lane=address)
        claim = records.Acquire(
            key=head.key,
            observed_epoch=head.epoch,
            observed_incarnation="",
            owner=owner,
            nonce=ids.nonce(),
        )
        maker = lane_frames.Secret(spec.slot.name, 0, spec.secret)
        async with _lane(owner, maker) as ask:
            bind = protocol.Bind(claim=claim, laps_ms={}, boot_s=LIVES_TIMEOUT_S)
            protocol.accept(protocol.unpack_done(await ask(lane_frames.Kind.BIND, bind)))
            protocol.accept(protocol.unpack_done(await ask(lane_frames.Kind.BOOTED, None)))
        async with _lane(owner, lane_frames.Secret(head.key, epoch, claim.nonce)) as ask:
            answer = await ask(lane_frames.Kind.DELIVER, _message(epoch))
            protocol.accept(protocol.unpack_delivered(answer))
            answer = await ask(lane_frames.Kind.CONTROL, _eviction(epoch))
            protocol.accept(protocol.unpack_controlled(answer))
    finally:
        process.close()


@contextlib.asynccontextmanager
async def _lane(
    owner: records.Owner, secret: lane_frames.Secret
) -> AsyncIterator[Callable[[lane_frames.Kind, object], Awaitable[bytes]]]:
    way = await lane.Lane.connect(
        owner.actor, owner.lane, secret, same_node=True, on_end=lambda _: None
    )

    async def ask(kind: lane_frames.Kind, request: object) -> bytes:
        return await way.call(kind, protocol.pack(request), timeout_s=LIVES_TIMEOUT_S)

    try:
        yield ask
    finally:
        way.close()


def _spec(folder: pathlib.Path, slot: pathlib.Path) -> protocol.SlotSpec:
    return protocol.SlotSpec(
        deployment=deployment.Deployment(
            store_url="", storage=folder, scratch=folder, signing_key_file=folder / "none"
        ),
        agent=records.AgentVersion(
            name="actor",
            version=1,
            import_path="",
            digest="",
            settings=definition.AgentSettings(),
            created_ms=0,
        ),
        keys=keyring.Keyring({"rehearsal": bytes(keyring.KEY_BYTES)}).for_tenant(TENANT),
        node_name="n",
        slot=slot,
        host="127.0.0.1",
        secret=ids.nonce(),
    )


def _message(epoch: int) -> protocol.Deliver:
    return protocol.Deliver(
        epoch=epoch,
        message=messages.Message(text="hello", request_id=ids.random_id("req")),
        body_digest="",
        busy=protocol.BusyPolicy.ENQUEUE,
        deadline_s=LIVES_TIMEOUT_S,
    )


def _eviction(epoch: int) -> protocol.Control:
    return protocol.Control(
        epoch=epoch, verb=protocol.Verb.EVICT, request_id="", deadline_s=LIVES_TIMEOUT_S
    )
