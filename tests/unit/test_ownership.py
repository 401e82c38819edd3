"""Holding a session: the mirror of its head, what is remembered of requests, and sealing."""

import pathlib
import shutil
from typing import Any

import msgspec
import pytest

from torpor import errors, limits, messages
from torpor.actors import changes, ownership, turn_context, turn_record
from torpor.storage import local_blobs, memory_store, records, segments, storage_proof
from torpor.testing import activations
from torpor.testing.clock import FakeClock

USER, AGENT = messages.USER_MESSAGE, messages.AGENT_MESSAGE


@pytest.fixture
def store() -> memory_store.MemoryStore:
    """A store."""
    return memory_store.MemoryStore()


@pytest.fixture
def blobs(tmp_path: pathlib.Path) -> local_blobs.LocalBlobStore:
    """A blob store."""
    return local_blobs.LocalBlobStore(tmp_path)


@pytest.fixture
async def owned(
    store: memory_store.MemoryStore, blobs: local_blobs.LocalBlobStore, fake_clock: FakeClock
) -> ownership.Ownership:
    """A new session that is owned."""
    key = await activations.new_session(store)
    mine, _ = await activations.claim(store, blobs, key, time=fake_clock)
    return mine


def _turn(request_id: str, *, digest: str = "body", **more: Any) -> changes.Change:
    data = {"text": "words", "request_id": request_id, "body_digest": digest}
    change = changes.Change(
        drafts=(
            turn_context.Draft(type=USER, data=data),
            turn_context.Draft(type=AGENT, data=data),
        ),
        request_id=request_id,
        body_digest=digest,
    )
    return msgspec.structs.replace(change, **more)


async def test_mirror_is_the_head(
    store: memory_store.MemoryStore, owned: ownership.Ownership
) -> None:
    """After every kind of commit the owner's own copy of the head equals the store's."""
    for change in (
        _turn("a", state=b"one", manifest="m1", usage=records.Usage(turns=1)),
        _turn("b"),
        changes.Change(drafts=(turn_context.Draft(type="app.note", data={}),)),
        changes.Change(status=records.Status.PAUSED),
        _turn("c", state=bytes(limits.INLINE_STATE_BYTES_MAX), manifest=""),
    ):
        committed = await owned.commit(change)
        assert owned.head == await store.sessions.head(owned.head.key)
        assert (owned.head.version, owned.head.next_seq) == (committed.version, committed.next_seq)


async def test_state_travels_inline_or_as_a_blob(
    store: memory_store.MemoryStore,
    blobs: local_blobs.LocalBlobStore,
    owned: ownership.Ownership,
) -> None:
    """Small states lie in the store, large ones in a blob; both come back verified."""
    for payload, inline in ((b"small", True), (bytes(limits.INLINE_STATE_BYTES_MAX), False)):
        await owned.commit(changes.Change(state=payload))
        assert owned.head.checkpoint is not None
        assert owned.head.checkpoint.inline is inline
        next_one, acquired = await activations.claim(store, blobs, owned.head.key)
        read = next_one.read_state(acquired)
        assert read is not None
        assert bytes(read) == payload
        owned = next_one


async def test_unchanged_state_is_not_written_again(owned: ownership.Ownership) -> None:
    """A turn that leaves the state as it was keeps the checkpoint, also when it was only loaded."""
    await owned.commit(_turn("a", state=b"same"))
    first = owned.head.checkpoint
    await owned.commit(_turn("b", state=b"same"))
    assert owned.head.checkpoint == first
    await owned.commit(_turn("c", state=b"other"))
    assert owned.head.checkpoint != first


async def test_requests_are_remembered(owned: ownership.Ownership) -> None:
    """A committed request is known by its id; with another body it is refused."""
    assert owned.remembered("a", "body") is None
    committed = await owned.commit(_turn("a"))
    known = owned.remembered("a", "body")
    assert known is not None
    assert (known.version, known.seq) == (committed.version, committed.next_seq - 1)
    answer = turn_record.reply(await owned.history.answer(known), repeated=True)
    assert (answer.text, answer.seq, answer.repeated) == ("words", known.seq, True)
    with pytest.raises(errors.RequestIdReused) as refused:
        owned.remembered("a", "other")
    assert refused.value.ids["request_id"] == "a"


async def test_memory_of_requests_is_bounded(
    owned: ownership.Ownership, fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full, new requests are refused and known ones answered, until an hour has passed.

    The newest are known even then: the clock may be wrong.
    """
    monkeypatch.setattr(limits, "DEDUP_MAX", 2)
    for request_id in ("a", "b"):
        await owned.commit(_turn(request_id))
    with pytest.raises(errors.DedupFull):
        owned.remembered("c", "body")
    assert owned.remembered("a", "body") is not None
    monkeypatch.setattr(limits, "DEDUP_HOT_MAX", 1)
    await fake_clock.advance(limits.DEDUP_KEEP_MS / 1000 + 1)
    assert owned.remembered("c", "body") is None
    assert owned.remembered("a", "body") is None
    assert owned.remembered("b", "body") is not None


async def test_sealing_keeps_history_and_requests(
    store: memory_store.MemoryStore,
    blobs: local_blobs.LocalBlobStore,
    owned: ownership.Ownership,
    fake_clock: FakeClock,
) -> None:
    """The older part of a long tail goes to segments: nothing is missing, requests stay known."""
    first = await owned.commit(_turn("first"))
    for number in range(limits.HOT_EVENTS_MAX // 2):
        await owned.commit(_turn(f"turn-{number}"))
    await owned.seal_if_longer_than(limits.HOT_EVENTS_MAX)
    head = await store.sessions.head(owned.head.key)
    assert owned.head == head
    assert head.next_seq - head.hot_from == limits.HOT_EVENTS_KEPT
    page = await owned.history.read(0, 2 * limits.HOT_EVENTS_MAX)
    assert [event.seq for event in page] == list(range(1, head.next_seq))
    assert await store.sessions.outcome(head.key, "first") is None
    later, _ = await activations.claim(store, blobs, head.key, time=fake_clock)
    for holder in (owned, later):
        known = holder.remembered("first", "body")
        assert known is not None
        assert (known.version, known.seq) == (first.version, first.next_seq - 1)


async def test_full_storage_keeps_nobody_from_leaving(
    store: memory_store.MemoryStore,
    owned: ownership.Ownership,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A long tail that cannot be sealed stays in the store, and the session is given up."""
    for number in range(limits.HOT_EVENTS_ASLEEP_MAX):
        await owned.commit(_turn(f"turn-{number}"))

    def full(*_: object) -> None:
        raise errors.StorageFull

    monkeypatch.setattr(segments, "seal", full)
    assert await owned.release()
    head = await store.sessions.head(owned.head.key)
    assert (head.owner, head.hot_from) == (None, 1)


async def test_what_was_done_stays_done_though_it_waits_again(
    store: memory_store.MemoryStore,
    blobs: local_blobs.LocalBlobStore,
    owned: ownership.Ownership,
    fake_clock: FakeClock,
) -> None:
    """A request whose outcome only cold history knows is not handled again when it is posted."""
    await owned.commit(_turn("first"))
    for number in range(limits.HOT_EVENTS_MAX // 2):
        await owned.commit(_turn(f"turn-{number}"))
    await owned.seal_if_longer_than(limits.HOT_EVENTS_MAX)
    key = owned.head.key
    again = messages.Message(text="words", request_id="first")
    await store.sessions.enqueue(key, records.InboxItem(message=again, body_digest="body", at_ms=0))
    later, _ = await activations.claim(store, blobs, key, time=fake_clock)
    known = later.remembered("first", "body")
    assert known is not None
    assert known.state is records.OutcomeState.DONE
    await later.commit(changes.Change(consumed=("first",), known={"first": known}))
    assert await store.sessions.outcome(key, "first") == known
    for number in range(limits.HOT_EVENTS_MAX // 2):
        await later.commit(_turn(f"later-{number}"))
    await later.seal_if_longer_than(limits.HOT_EVENTS_MAX)
    assert await store.sessions.outcome(key, "first") is None


async def test_short_tail_is_left_alone(
    store: memory_store.MemoryStore, owned: ownership.Ownership
) -> None:
    """Below the bound nothing is moved; leaving, a shorter tail is moved than while awake."""
    for number in range(limits.HOT_EVENTS_ASLEEP_MAX // 2):
        await owned.commit(_turn(f"turn-{number}"))
    await owned.seal_if_longer_than(limits.HOT_EVENTS_MAX)
    assert not owned.head.cold_index
    assert await owned.release()
    head = await store.sessions.head(owned.head.key)
    assert head.cold_index
    assert head.owner is None


async def test_owner_does_not_leave_work_behind(
    store: memory_store.MemoryStore, owned: ownership.Ownership
) -> None:
    """With something in the inbox the session is not released; abandoned, it is."""
    item = records.InboxItem(
        message=messages.Message(text="x", request_id="a"), body_digest="x", at_ms=0
    )
    await store.sessions.enqueue(owned.head.key, item)
    assert not await owned.release()
    assert (await store.sessions.head(owned.head.key)).owner == activations.OWNER
    await owned.abandon()
    assert (await store.sessions.head(owned.head.key)).owner is None


async def test_what_is_wrong_is_told_though_the_store_is_away(
    store: memory_store.MemoryStore,
    blobs: local_blobs.LocalBlobStore,
    owned: ownership.Ownership,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A claim over damaged history says so, also when it cannot be given up."""
    await storage_proof.establish(store.catalog, blobs)
    for number in range(limits.HOT_EVENTS_ASLEEP_MAX):
        await owned.commit(_turn(f"turn-{number}"))
    await owned.release()
    shutil.rmtree(tmp_path / "acme" / "blobs")

    async def away(*_: object, **__: object) -> bool:
        raise errors.StoreUnavailable

    monkeypatch.setattr(store.sessions, "vacate", away)
    with pytest.raises(errors.BlobMissing, match="from a backup"):
        await activations.claim(store, blobs, owned.head.key)


async def test_fenced_owner_can_do_nothing(
    store: memory_store.MemoryStore,
    blobs: local_blobs.LocalBlobStore,
    owned: ownership.Ownership,
) -> None:
    """After a takeover every write of the former owner is refused, and none changes the head."""
    for number in range(limits.HOT_EVENTS_ASLEEP_MAX):
        await owned.commit(_turn(f"turn-{number}"))
    await activations.claim(store, blobs, owned.head.key)
    before = await store.sessions.head(owned.head.key)
    for write in (
        owned.commit(_turn("late")),
        owned.release(),
        owned.seal_if_longer_than(0),
    ):
        with pytest.raises(errors.Fenced):
            await write
    await owned.abandon()
    assert await store.sessions.head(owned.head.key) == before


async def test_checkpoint_that_is_not_there(
    store: memory_store.MemoryStore,
    blobs: local_blobs.LocalBlobStore,
    owned: ownership.Ownership,
) -> None:
    """A head that names an inline state which the store has lost is damage, said as such."""
    await owned.commit(_turn("a", state=b"small"))
    later, acquired = await activations.claim(store, blobs, owned.head.key)
    with pytest.raises(errors.CheckpointCorrupt, match="not in the store"):
        later.read_state(msgspec.structs.replace(acquired, inline_state=None))
