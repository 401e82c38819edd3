"""An activation that ends while something else is under way, and one after another was lost."""

import asyncio
import pathlib
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import torpor
from torpor import definition, errors, messages
from torpor.actors import protocol
from torpor.storage import local_blobs, memory_store, records
from torpor.testing import activations, store_samples

Activate = Callable[..., Awaitable[activations.Activation]]


class Echo(torpor.Agent):
    """Answers what it is told, and fails when told to."""

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Answer, or fail."""
        if message.text == "fail":
            raise ValueError("as told")
        return message.text


@pytest.fixture
def store() -> memory_store.MemoryStore:
    """A store in memory."""
    return memory_store.MemoryStore()


@pytest.fixture
async def activate(
    store: memory_store.MemoryStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Activate]:
    """Yield a function that activates a session of an `Echo`."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    made = []

    async def one(key: records.SessionKey, **how: Any) -> activations.Activation:
        made.append(await activations.activate(store, key, Echo, tmp_path, **how))
        return made[-1]

    yield one
    for activation in made:
        await activation.close()


async def _post(stored: Any, key: records.SessionKey, text: str) -> None:
    message = messages.Message(text=text, request_id=f"posted-{text}")
    await stored.sessions.enqueue(
        key, records.InboxItem(message=message, body_digest=text, at_ms=0)
    )


async def test_leaving_through_a_turn_that_fails(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """What arrives while the session leaves may end it: it has left all the same."""
    here = await activate(await activations.new_session(store))
    await here.send("1")
    key = here.owned.head.key
    await _post(store, key, "fail")
    protocol.accept(await here.put(protocol.Leave(epoch=1)))
    await here.ended()
    assert (await store.sessions.head(key)).owner is None


async def test_repeat_of_a_message_behind_one_that_fails(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """Its caller is sent on to the next owner, where it is handled from the turn's start."""
    key = await activations.new_session(store)
    for text in ("fail", "2"):
        await _post(store, key, text)
    here = await activate(key)
    with pytest.raises(errors.Fenced):
        await here.send("2", "posted-2")
    await here.ended()
    again = await activate(key)
    assert (await again.send("2", "posted-2")).text == "2"


async def test_file_for_an_agent_that_keeps_its_thread_busy(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """Something that an agent left running holds up a file for a turn's time, then the session."""
    key = await activations.new_session(store)
    here = await activate(key, settings=definition.AgentSettings(turn_timeout_s=0.05))
    freed = threading.Event()
    here.residence._thread._loop.call_soon_threadsafe(freed.wait, 60.0)
    place = protocol.PlaceFile(
        epoch=1,
        path="f",
        digest="unused",
        size_bytes=7,
        mode=0o644,
        request_id="write",
        deadline_s=60.0,
    )
    with pytest.raises(errors.OwnerUnreachable):
        protocol.accept(await here.put(place))
    await here.ended()
    freed.set()
    assert (await store.sessions.head(here.owned.head.key)).owner is None


async def test_tidying_up_in_a_store_that_went_back(
    store: memory_store.MemoryStore, activate: Activate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What memory holds is not what the store holds, so nothing more is done with it."""
    here = await activate(await activations.new_session(store))

    async def lost(_: int) -> None:
        raise errors.VersionsLost

    monkeypatch.setattr(here.owned, "seal_if_longer_than", lost)
    await here.send("1")
    await here.ended()
    assert (await store.sessions.head(here.owned.head.key)).owner is None


async def _woken_again(
    store: memory_store.MemoryStore,
    activate: Activate,
    monkeypatch: pytest.MonkeyPatch,
    flush: Callable[[], Awaitable[object]],
) -> tuple[activations.Activation, protocol.Delivered]:
    """Return a second activation, and what the first had answered to "hello", request "r".

    The second waits for its claim's durability by `flush`.
    """
    key = await activations.new_session(store)
    first = await activate(key)
    answer = await first.send("hello", "r")
    protocol.accept(await first.put(protocol.Leave(epoch=1)))
    monkeypatch.setattr(store.sessions, "flush", flush)
    return await activate(key), answer


async def test_what_was_found_is_told_once_it_is_durable(
    store: memory_store.MemoryStore, activate: Activate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim waits for no disk; who finds a turn that was handled says so when a disk has it."""
    durable = asyncio.Event()
    second, answer = await _woken_again(store, activate, monkeypatch, durable.wait)
    told = asyncio.create_task(second.send("hello", "r"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not told.done()
    durable.set()
    assert (await told).seq == answer.seq
    protocol.accept(await second.put(protocol.Leave(epoch=2)))
    durable.clear()
    third = await activate(second.owned.head.key)
    # What it commits itself waits for the disk, and for all that came before.
    assert not (await third.send("more", "s")).repeated


async def test_what_is_refused_is_told_once_it_is_durable(
    store: memory_store.MemoryStore, activate: Activate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It speaks of what was found with the claim, as an answer does."""
    durable = asyncio.Event()
    second, _ = await _woken_again(store, activate, monkeypatch, durable.wait)
    told = asyncio.create_task(second.send("something else", "r"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not told.done()
    durable.set()
    with pytest.raises(errors.RequestIdReused):
        await told


async def test_a_claim_that_was_lost_before_it_was_durable_answers_nothing(
    store: memory_store.MemoryStore,
    activate: Activate,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    """Another server that lacks it takes over, and another owner there: what was found is old."""
    flush = store.sessions.flush

    async def taken_over() -> None:
        monkeypatch.setattr(store.sessions, "flush", flush)
        (head,), _ = await store.sessions.page(activations.KEYS.tenant, after="", limit=1)
        await activations.claim(store, local_blobs.LocalBlobStore(tmp_path), head.key)

    second, _ = await _woken_again(store, activate, monkeypatch, taken_over)
    with pytest.raises(errors.Fenced):
        await second.send("hello", "r")
    await second.ended()


def _left(**lost: Any) -> records.InboxItem:
    return records.InboxItem(
        message=messages.Message(text="", request_id="left"),
        body_digest="2",
        at_ms=0,
        forgotten=records.Forgotten(requests=["r"], **lost),
    )


@pytest.mark.parametrize("paused", [False, True])
async def test_what_a_former_owner_left_is_reported(
    store: memory_store.MemoryStore, activate: Activate, *, paused: bool
) -> None:
    """It is written as it is, also while messages wait, and no turn of the agent is made of it."""
    key = await activations.new_session(store)
    here = await activate(key)
    await here.send("hello")
    if paused:
        pause = protocol.Control(epoch=1, verb=protocol.Verb.PAUSE, request_id="p", deadline_s=60.0)
        protocol.accept(await here.put(pause))
    await store.sessions.enqueue(key, _left(version=9, kept_version=7, first_seq=8, last_seq=11))
    await here.put(protocol.DrainInbox())
    events = await here.owned.history.read(0, 100)
    assert events[-1].type == messages.SESSION_RECOVERED
    # It had found version 1 and the next event 2: older than what the former owner had found.
    assert events[-1].data == {
        "reason": "store_went_back",
        "from_version": 9,
        "to_version": 1,
        "lost": {"versions": [2, 9], "events": [2, 11], "requests": ["r"]},
    }
    assert await store.sessions.inbox(key) == []
    assert [event.type for event in events].count(messages.AGENT_MESSAGE) == 1


async def test_a_claim_that_was_lost_alone_is_not_reported(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """The former owner could not know whether all that it had found is there: it is."""
    key = await activations.new_session(store)
    here = await activate(key)
    await here.send("hello")
    await store.sessions.enqueue(key, _left(version=1, kept_version=1, first_seq=2, last_seq=1))
    await here.put(protocol.DrainInbox())
    events = await here.owned.history.read(0, 100)
    assert messages.SESSION_RECOVERED not in [event.type for event in events]
    assert await store.sessions.inbox(key) == []


def _seen(version: int) -> protocol.Deliver:
    return protocol.Deliver(
        epoch=1,
        message=messages.Message(text="again", request_id="seen"),
        body_digest="again",
        busy=protocol.BusyPolicy.ENQUEUE,
        deadline_s=60.0,
        min_version=version,
    )


async def test_a_message_that_has_seen_more_is_refused(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """The owner itself knows what it is at, whatever others believe; no turn is made."""
    here = await activate(await activations.new_session(store))
    answer = await here.send("hello")
    seen = _seen(answer.version + 1)
    with pytest.raises(errors.VersionsLost):
        protocol.accept(await here.put(seen))
    assert here.owned.head.version == answer.version
    assert protocol.accept(await here.put(_seen(answer.version))).text == "again"


async def test_an_owner_that_was_taken_over_does_not_speak_of_losses(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """Who has seen more than it has may have been answered by the one in office: it ends."""
    key = await activations.new_session(store)
    here = await activate(key)
    answer = await here.send("hello")
    head = await store.sessions.head(key)
    await store.sessions.acquire(store_samples.claim(head))
    seen = _seen(answer.version + 1)
    with pytest.raises(errors.Fenced):
        protocol.accept(await here.put(seen))
    await here.ended()
