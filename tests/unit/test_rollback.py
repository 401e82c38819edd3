"""A store that goes back in time: it failed over to a replica that lacks the last writes."""

import pathlib
from collections.abc import Callable

import msgspec
import pytest

from torpor import errors, limits, messages
from torpor.actors import rollback
from torpor.storage import keys, local_blobs, records, redis_store
from torpor.testing import activations, store_samples
from torpor.testing.past import Past, events, turn


@pytest.fixture
def blob_store(tmp_path: pathlib.Path) -> local_blobs.LocalBlobStore:
    """An empty blob store."""
    return local_blobs.LocalBlobStore(tmp_path / "blobs")


@pytest.fixture
def store(own_store: redis_store.RedisStore) -> redis_store.RedisStore:
    """A store that can go back."""
    return own_store


async def test_the_owner_reports_what_is_lost(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """The next commit is refused, and the history names the lost versions and requests."""
    key = await activations.new_session(store)
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(turn("kept"))
    before = past()
    await owned.commit(turn("lost-1"))
    await owned.commit(turn("lost-2"))
    before.bring_back()
    with pytest.raises(errors.VersionsLost, match=r"at version 2; .* from version 3 to 4"):
        await owned.commit(turn("new"))
    *_, answer, report = await events(owned)
    assert answer.data["text"] == "kept"
    assert (report.type, report.version, report.seq) == (messages.SESSION_RECOVERED, 3, 3)
    assert report.data == {
        "reason": rollback.REASON,
        "from_version": 4,
        "to_version": 2,
        "lost": {"versions": [3, 4], "events": [3, 4], "requests": ["lost-1", "lost-2"]},
    }
    # A fresh process finds the state of the version that is left, and goes on.
    await owned.abandon()
    later, acquired = await activations.claim(store, blob_store, key)
    assert bytes(later.read_state(acquired) or b"") == b"kept"
    assert (await later.commit(turn("new"))).version == 4


async def test_release_reports_it_too(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """A session is not put to sleep over a version that its owner knows to be lost."""
    key = await activations.new_session(store)
    owned, _ = await activations.claim(store, blob_store, key)
    before = past()
    await owned.commit(turn("lost"))
    before.bring_back()
    with pytest.raises(errors.VersionsLost):
        await owned.release()
    assert (await events(owned))[-1].data["lost"]["requests"] == ["lost"]


async def _left(store: redis_store.RedisStore, key: records.SessionKey) -> records.Forgotten:
    (item,) = await store.sessions.inbox(key)
    assert await store.wake.hinted(keys.wake_shard(key), limit=10) == [key]
    assert item.forgotten is not None
    return item.forgotten


async def test_a_lost_claim(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """The store goes back to before the claim: whoever owns the session next is to report it."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(turn("lost"))
    before.bring_back()
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("new"))
    assert (await store.sessions.head(key)).owner is None
    assert (await _left(store, key)).requests == ["lost"]


async def test_another_owner_is_left_alone(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """Whoever claimed the session in the store's new present is not written over: it is told."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(turn("lost"))
    before.bring_back()
    second, _ = await activations.claim(store, blob_store, key)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("new"))
    head = await store.sessions.head(key)
    assert (head.version, head.nonce) == (1, second.head.nonce)
    assert await _left(store, key) == records.Forgotten(
        version=2, kept_version=1, first_seq=2, last_seq=2, requests=["lost"]
    )
    assert (await second.commit(turn("new"))).version == 2


async def test_another_owner_has_written_since(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """The version alone would hide the loss; that the epoch has another nonce tells it."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(turn("lost"))
    before.bring_back()
    second, _ = await activations.claim(store, blob_store, key)
    await second.commit(turn("theirs"))
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("new"))
    assert (await store.sessions.head(key)).nonce == second.head.nonce
    # What the other wrote has the number of what is lost.
    assert (await _left(store, key)).kept_version == 1


async def test_others_came_and_went(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """Neither version nor epoch tells the loss any more; the history, which is another's, does."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(turn("lost"))
    before.bring_back()
    for request_id in ("theirs-1", "theirs-2"):
        other, _ = await activations.claim(store, blob_store, key)
        await other.commit(turn(request_id))
        await other.release()
    await activations.claim(store, blob_store, key)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("new"))
    lost = await _left(store, key)
    assert (lost.kept_version, lost.version, lost.requests) == (1, 2, ["lost"])


async def test_lost_with_the_answer(
    store: redis_store.RedisStore,
    blob_store: local_blobs.LocalBlobStore,
    past: Callable[[], Past],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store dies with a commit under way and comes back without it and the one before."""
    key = await activations.new_session(store)
    owned, _ = await activations.claim(store, blob_store, key)
    before = past()
    await owned.commit(turn("lost"))

    async def die(commit: records.Commit) -> records.Committed:
        before.bring_back()
        monkeypatch.undo()
        raise errors.OutcomeUnknown(session=commit.key.session)

    monkeypatch.setattr(store.sessions, "commit", die)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("under way"))
    assert (await events(owned))[-1].data["lost"]["requests"] == ["lost"]
    await owned.abandon()
    assert (await store.sessions.head(key)).owner is None


async def test_no_loss_is_made_up(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore
) -> None:
    """An owner that was taken over while it slept is fenced, and nothing is reported."""
    key = await activations.new_session(store)
    owned, _ = await activations.claim(store, blob_store, key)
    second, _ = await activations.claim(store, blob_store, key)
    await second.commit(turn("theirs"))
    with pytest.raises(errors.Fenced):
        await owned.commit(turn("mine"))
    assert messages.SESSION_RECOVERED not in [event.type for event in await events(second)]


async def test_lost_with_the_answer_and_the_claim(
    store: redis_store.RedisStore,
    blob_store: local_blobs.LocalBlobStore,
    past: Callable[[], Past],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store comes back without the claim, too: that it refuses another one hides nothing."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(turn("lost"))

    async def die(commit: records.Commit) -> records.Committed:
        before.bring_back()
        monkeypatch.undo()
        raise errors.OutcomeUnknown(session=commit.key.session)

    monkeypatch.setattr(store.sessions, "commit", die)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("under way"))
    assert (await _left(store, key)).requests == ["lost"]


async def test_a_claim_alone_is_no_loss(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """Whoever had only been woken is fenced, and nothing is reported: nobody was told of it."""
    key = await activations.new_session(store)
    first, _ = await activations.claim(store, blob_store, key)
    await first.commit(turn("kept"))
    await first.release()
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    before.bring_back()
    with pytest.raises(errors.Fenced):
        await owned.commit(turn("new"))
    assert messages.SESSION_RECOVERED not in [event.type for event in await events(owned)]


@pytest.mark.parametrize("theirs", [1, 2])
async def test_another_has_written_and_left(
    store: redis_store.RedisStore,
    blob_store: local_blobs.LocalBlobStore,
    past: Callable[[], Past],
    theirs: int,
) -> None:
    """As much as is lost, or more: only the history tells that it is another's."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(turn("lost"))
    before.bring_back()
    second, _ = await activations.claim(store, blob_store, key)
    for number in range(theirs):
        await second.commit(turn(f"theirs-{number}"))
    await second.release()
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("new"))
    lost = await _left(store, key)
    assert (lost.kept_version, lost.version, lost.requests) == (1, 2, ["lost"])


async def test_what_was_found_is_lost(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """An owner that has written nothing knows what there was; those who wrote it are gone."""
    key = await activations.new_session(store)
    before = past()
    first, _ = await activations.claim(store, blob_store, key)
    await first.commit(turn("lost"))
    await first.release()
    owned, _ = await activations.claim(store, blob_store, key)
    before.bring_back()
    for request_id in ("theirs-1", "theirs-2", "theirs-3"):
        other, _ = await activations.claim(store, blob_store, key)
        await other.commit(turn(request_id))
        await other.release()
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("new"))
    assert (await _left(store, key)).version == 2


async def test_what_stands_of_a_claim_that_stood(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """The last turns are lost, and then it was taken over: those before them are not reported."""
    key = await activations.new_session(store)
    owned, _ = await activations.claim(store, blob_store, key)
    for number in range(5):
        await owned.commit(turn(f"kept-{number}"))
    before = past()
    await owned.commit(turn("lost"))
    before.bring_back()
    second, _ = await activations.claim(store, blob_store, key)
    await second.commit(turn("theirs-1"))
    await second.commit(turn("theirs-2"))
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("new"))
    lost = await _left(store, key)
    assert (lost.kept_version, lost.version, lost.requests) == (6, 7, ["lost"])
    assert (lost.first_seq, lost.last_seq) == (7, 7)


@pytest.mark.parametrize("forgotten", ["the claim", "the tail", "a seal"])
async def test_a_long_tail_hides_no_loss(
    store: redis_store.RedisStore,
    blob_store: local_blobs.LocalBlobStore,
    past: Callable[[], Past],
    forgotten: str,
) -> None:
    """What has to be sealed first, and is not there any more, is reported as a commit would."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    if forgotten != "the claim":
        before = past()
    for request_id in ("lost-1", "lost-2"):
        one = turn(request_id)
        drafts = (*one.drafts,) * (limits.HOT_EVENTS_ASLEEP_MAX + 1)
        await owned.commit(msgspec.structs.replace(one, drafts=drafts))
        if forgotten == "a seal":
            await owned.seal_if_longer_than(limits.HOT_EVENTS_ASLEEP_MAX)
            forgotten = "a seal that was made"
    before.bring_back()
    with pytest.raises(errors.VersionsLost):
        await owned.release()
    if forgotten == "the claim":
        assert (await _left(store, key)).requests == ["lost-1", "lost-2"]
    else:
        assert (await events(owned))[-1].data["lost"]["requests"] == ["lost-1", "lost-2"]


def test_who_claimed_afterwards_knows_how_much_was_there() -> None:
    """The former owner had found more than the store had when it went on."""
    lost = records.Forgotten(version=9, kept_version=7, first_seq=15, last_seq=20)
    found = msgspec.structs.replace(store_samples.new(store_samples.key()).head(), version=5)
    older = msgspec.structs.replace(found, next_seq=11)
    assert rollback.data(rollback.as_of(lost, older))["lost"] == {
        "versions": [6, 9],
        "events": [11, 20],
        "requests": [],
    }
    newer = msgspec.structs.replace(found, version=8, next_seq=18)
    assert rollback.as_of(lost, newer) == lost
