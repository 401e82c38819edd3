"""The shell of a session process, without Ray."""

import asyncio
import pathlib
import sys
import tempfile
from typing import Any

import msgspec
import pytest

from torpor import definition, deployment, errors, messages
from torpor.actors import (
    lane,
    lane_address,
    lane_frames,
    mailbox,
    ownership,
    protocol,
    session,
)
from torpor.storage import local_blobs, memory_store, records
from torpor.testing import activations, eventually, store_samples

EPOCH = 3


class Resident:
    """A residence that takes work and never gets to it."""

    epoch = EPOCH

    def __init__(self) -> None:
        self.mailbox = mailbox.Mailbox("chat")

    def put(self, work: mailbox.Work, **how: Any) -> mailbox.Job:
        """Queue it."""
        return self.mailbox.put(work, **how)

    async def run(self) -> None:
        """Answer everything but looks into the inbox."""
        while True:
            job = await self.mailbox.take()
            job.resolve(protocol.Delivered(text="here", data={}, seq=1, version=1))


DELIVER = protocol.pack(
    protocol.Deliver(
        epoch=EPOCH,
        message=messages.Message(text="hello", request_id="r"),
        body_digest="",
        busy=protocol.BusyPolicy.ENQUEUE,
        deadline_s=60.0,
    )
)

SPEC = protocol.SlotSpec(
    deployment=deployment.Deployment(
        store_url="",
        storage=pathlib.Path("unused"),
        scratch=pathlib.Path("unused"),
        signing_key_file=pathlib.Path("unused"),
    ),
    agent=activations.AGENT,
    keys=activations.KEYS,
    node_name="node-1",
    slot=pathlib.Path("unused"),
)
CLAIM = records.Acquire(
    key=records.SessionKey("acme", "chat"),
    observed_epoch=EPOCH - 1,
    observed_incarnation="",
    owner=activations.OWNER,
    nonce="n",
)


@pytest.fixture(autouse=True)
def _equipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has imported and connected all it needs."""

    async def equip(_: protocol.SlotSpec) -> object:
        return object()

    monkeypatch.setattr(session, "_equip", equip)


async def prepared(spec: protocol.SlotSpec = SPEC) -> tuple[session.AgentSession, records.Acquire]:
    """Return a process that waits to be bound, and the claim to bind it with."""
    process = session.AgentSession(spec)
    lane_text = protocol.accept(await process.prepare()).lane
    owner = msgspec.structs.replace(CLAIM.owner, lane=lane_text)
    return process, msgspec.structs.replace(CLAIM, owner=owner)


@pytest.mark.parametrize("refused", [False, True])
async def test_calls_during_the_boot_await_its_end(
    monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    """Callers know the owner before it is loaded: their calls wait, and hear why it is not."""
    go = asyncio.Event()

    async def load(*_: object) -> Resident:
        await go.wait()
        if refused:
            raise errors.CheckpointCorrupt
        return Resident()

    monkeypatch.setattr(session, "_take_up_residence", load)
    process, claim = await prepared()
    assert await process.bind(protocol.Bind(claim=claim, laps_ms={}, boot_s=60.0)) is None
    early = asyncio.create_task(process.deliver(DELIVER))
    drain = asyncio.create_task(process.drain_inbox(EPOCH))
    await asyncio.sleep(0)
    assert not early.done()
    go.set()
    if refused:
        for answer in (await process.booted(), protocol.unpack_delivered(await early), await drain):
            assert isinstance(answer, protocol.Refusal)
            assert answer.reason == errors.CheckpointCorrupt.reason
    else:
        assert await process.booted() is None
        assert protocol.accept(protocol.unpack_delivered(await early)).text == "here"
        assert await drain is None
        assert process._living is not None
        process._living.cancel()


async def test_the_lane_listens_before_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head names it from the claim on; who comes during the boot waits for its end."""
    go = asyncio.Event()
    heads: list[records.Owner] = []

    async def load(spec: protocol.BootSpec, *_: object) -> Resident:
        heads.append(spec.claim.owner)
        await go.wait()
        return Resident()

    monkeypatch.setattr(session, "_take_up_residence", load)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setattr(lane_address, "sockets_folder", lambda: pathlib.Path(folder, "lanes"))
        process, claim = await prepared(msgspec.structs.replace(SPEC, host="127.0.0.1"))
        maker = await lane.Lane.connect(
            "slot",
            claim.owner.lane,
            lane_frames.Secret(SPEC.slot.name, 0, SPEC.secret),
            same_node=True,
            on_end=lambda _: None,
        )
        binding = protocol.pack(protocol.Bind(claim=claim, laps_ms={}, boot_s=60.0))
        bound = await maker.call(lane_frames.Kind.BIND, binding, timeout_s=30)
        assert protocol.unpack_done(bound) is None
        booted = asyncio.create_task(
            maker.call(lane_frames.Kind.BOOTED, protocol.pack(None), timeout_s=30)
        )
        again = await maker.call(lane_frames.Kind.BIND, binding, timeout_s=30)
        assert protocol.unpack_done(again) is not None
        await eventually.until(lambda: heads)
        seat = protocol.Seat(key=CLAIM.key, epoch=EPOCH, nonce="n", owner=heads[0])
        way = await lane.Lane.open(seat, same_node=True, on_end=lambda _: None)
        early = asyncio.create_task(way.call(lane_frames.Kind.DELIVER, DELIVER, timeout_s=30))
        drain = asyncio.create_task(
            way.call(lane_frames.Kind.DRAIN_INBOX, protocol.pack(EPOCH + 1), timeout_s=30)
        )
        go.set()
        assert protocol.unpack_done(await booted) is None
        assert heads[0].lane != ""
        assert protocol.accept(protocol.unpack_delivered(await early)).text == "here"
        refused = protocol.unpack_done(await drain)
        assert refused is not None
        assert refused.reason == errors.Fenced.reason
        way.close()
        maker.close()
        process._lane.close()  # type: ignore[union-attr]
        process._living.cancel()  # type: ignore[union-attr]


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", ""])
async def test_a_process_that_cannot_listen_works_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, host: str
) -> None:
    """Nobody may listen at an address of another machine; and a boot that fails leaves nothing."""
    named: list[str] = []

    async def fail(spec: protocol.BootSpec, *_: object) -> Resident:
        named.append(spec.claim.owner.lane)
        raise errors.CheckpointCorrupt

    monkeypatch.setattr(session, "_take_up_residence", fail)
    monkeypatch.setattr(lane_address, "sockets_folder", lambda: tmp_path / ("x" * 60))
    process, claim = await prepared(msgspec.structs.replace(SPEC, host=host))
    assert await process.bind(protocol.Bind(claim=claim, laps_ms={}, boot_s=60.0)) is None
    answer = await process.booted()
    assert isinstance(answer, protocol.Refusal)
    assert answer.reason == errors.CheckpointCorrupt.reason
    assert bool(named[0]) == (host == "127.0.0.1")
    monkeypatch.setattr(session, "REFUSED_LINGER_S", 0.0)
    monkeypatch.setattr(session.ray.actor, "exit_actor", lambda: None)
    await process.run_until_ended()
    if named[0]:
        address = lane_address.LaneAddress.parse(named[0])
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address.host, address.port)


async def test_a_process_is_bound_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second session, or the same again, is refused, also when the first could not be loaded."""

    async def fail(*_: object) -> Resident:
        raise errors.CheckpointCorrupt

    monkeypatch.setattr(session, "_take_up_residence", fail)
    process, claim = await prepared()
    binding = protocol.Bind(claim=claim, laps_ms={}, boot_s=60.0)
    assert await process.bind(binding) is None
    first, second = await process.booted(), await process.bind(binding)
    assert isinstance(first, protocol.Refusal)
    assert isinstance(second, protocol.Refusal)
    assert (first.reason, second.reason) == (
        errors.CheckpointCorrupt.reason,
        errors.Fenced.reason,
    )


@pytest.mark.parametrize(("boot_s", "said"), [(60.0, "no database"), (0.1, "not loaded within")])
async def test_why_a_boot_took_too_long(
    monkeypatch: pytest.MonkeyPatch, boot_s: float, said: str
) -> None:
    """What the agent's own code waited for in vain is told as that."""

    async def load(*_: object) -> Resident:
        if boot_s < 1.0:
            await asyncio.Event().wait()
        raise TimeoutError("no database")

    monkeypatch.setattr(session, "_take_up_residence", load)
    process, claim = await prepared()
    await process.bind(protocol.Bind(claim=claim, laps_ms={}, boot_s=boot_s))
    answer = await process.booted()
    assert isinstance(answer, protocol.Refusal)
    assert answer.reason == errors.ActivationFailed.reason
    assert said in answer.message


class Stubborn(definition.Agent):
    """Does not wake: never, or not with these words."""

    refuses = False

    async def on_wake(self) -> None:
        """Refuse, or wait for what does not come."""
        if self.refuses:
            raise errors.InvalidField("not like this")
        await asyncio.Event().wait()


Unclaimed = tuple[session.AgentSession, memory_store.MemoryStore, records.Acquire]


@pytest.fixture
async def unclaimed(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Unclaimed:
    """A process that waits to be bound to a `Stubborn`, its store, and a claim to bind it with."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.chdir(tmp_path)
    store, blobs = memory_store.MemoryStore(), local_blobs.LocalBlobStore(tmp_path)

    async def equip(_: protocol.SlotSpec) -> session.Equipment:
        return session.Equipment(Stubborn, store, blobs)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "_equip", equip)
    slot = tmp_path / "slot"
    slot.mkdir()
    place = msgspec.structs.replace(SPEC.deployment, storage=tmp_path)
    process, _ = await prepared(msgspec.structs.replace(SPEC, slot=slot, deployment=place))
    key = await activations.new_session(store)
    return process, store, store_samples.claim(await store.sessions.head(key))


async def test_a_boot_that_took_too_long_owns_nothing(unclaimed: Unclaimed) -> None:
    """The session is free for whoever tries next."""
    process, store, claim = unclaimed
    await process.bind(protocol.Bind(claim=claim, laps_ms={}, boot_s=0.5))
    assert isinstance(await process.booted(), protocol.Refusal)
    head = await store.sessions.head(claim.key)
    assert (head.epoch, head.owner) == (claim.observed_epoch + 1, None)


async def test_why_a_session_cannot_be_loaded_is_told_once_it_is_durable(
    unclaimed: Unclaimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found with a claim that may be lost, and with it what it speaks of."""
    process, store, claim = unclaimed
    settling, durable = asyncio.Event(), asyncio.Event()
    settle = ownership.Ownership.settle

    async def watched(self: ownership.Ownership) -> None:
        settling.set()
        await settle(self)

    monkeypatch.setattr(Stubborn, "refuses", True)
    monkeypatch.setattr(store.sessions, "flush", durable.wait)
    monkeypatch.setattr(ownership.Ownership, "settle", watched)
    await process.bind(protocol.Bind(claim=claim, laps_ms={}, boot_s=60.0))
    booted = asyncio.create_task(process.booted())
    await asyncio.wait(
        [booted, asyncio.create_task(settling.wait())], return_when="FIRST_COMPLETED"
    )
    assert not booted.done()
    durable.set()
    refusal = await booted
    assert isinstance(refusal, protocol.Refusal)
    assert refusal.reason == errors.InvalidField.reason
    assert (await store.sessions.head(claim.key)).owner is None


async def test_that_a_session_is_gone_is_told_once_it_is_durable(
    unclaimed: Unclaimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion that the store may forget must not be taken for one that stays."""
    process, store, claim = unclaimed
    await store.sessions.delete(claim.key)

    async def away() -> None:
        raise errors.StoreUnavailable

    monkeypatch.setattr(store.sessions, "flush", away)
    await process.bind(protocol.Bind(claim=claim, laps_ms={}, boot_s=60.0))
    refusal = await process.booted()
    assert isinstance(refusal, protocol.Refusal)
    assert refusal.reason == errors.StoreUnavailable.reason
