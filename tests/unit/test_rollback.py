"""A store that goes back in time: it failed over to a replica that lacks the last writes."""

import pathlib
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
import redis

from torpor import errors, limits, messages
from torpor.actors import changes, ownership, rollback, turn_context
from torpor.storage import keys, local_blobs, records, redis_store
from torpor.testing import activations, store_samples, valkey


@pytest.fixture
def blob_store(tmp_path: pathlib.Path) -> local_blobs.LocalBlobStore:
    """An empty blob store."""
    return local_blobs.LocalBlobStore(tmp_path / "blobs")


class Past:
    """Takes everything that the store holds back to an earlier moment."""

    def __init__(self, server: valkey.Server) -> None:
        self._redis = redis.Redis(port=server.port)
        self._dumps = {name: self._redis.dump(name) for name in self._redis.scan_iter()}

    def bring_back(self) -> None:
        """Let the store hold what it held when this was made."""
        self._redis.flushall()
        for name, dump in self._dumps.items():
            self._redis.restore(name, 0, dump)


@pytest.fixture
def past(own_store_server: valkey.Server) -> Callable[[], Past]:
    """Makes a `Past` of the server."""
    return lambda: Past(own_store_server)


@pytest.fixture
async def store(own_store_server: valkey.Server) -> AsyncIterator[redis_store.RedisStore]:
    """A store on a server of the test's own."""
    opened = redis_store.open(store_samples.deployment_at(own_store_server.url))
    yield opened
    await opened.close()


def _turn(request_id: str) -> changes.Change:
    draft = turn_context.Draft(type=messages.AGENT_MESSAGE, data={"text": request_id})
    return changes.Change(
        drafts=(draft,), state=request_id.encode(), request_id=request_id, body_digest="d"
    )


async def _events(owned: ownership.Ownership) -> list[messages.Event]:
    return await owned.history.read(0, 100)


async def test_the_owner_reports_what_is_lost(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """The next commit is refused, and the history names the lost versions and requests."""
    key = await activations.new_session(store)
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(_turn("kept"))
    before = past()
    await owned.commit(_turn("lost-1"))
    await owned.commit(_turn("lost-2"))
    before.bring_back()
    with pytest.raises(errors.VersionsLost, match=r"at version 2; .* from version 3 to 4"):
        await owned.commit(_turn("new"))
    *_, answer, report = await _events(owned)
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
    assert (await later.commit(_turn("new"))).version == 4


async def test_release_reports_it_too(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """A session is not put to sleep over a version that its owner knows to be lost."""
    key = await activations.new_session(store)
    owned, _ = await activations.claim(store, blob_store, key)
    before = past()
    await owned.commit(_turn("lost"))
    before.bring_back()
    with pytest.raises(errors.VersionsLost):
        await owned.release()
    assert (await _events(owned))[-1].data["lost"]["requests"] == ["lost"]


async def test_a_lost_claim_is_made_again(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """The store goes back to before the claim: the owner claims again, to report and to end."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(_turn("lost"))
    before.bring_back()
    with pytest.raises(errors.VersionsLost):
        await owned.commit(_turn("new"))
    assert (await _events(owned))[-1].type == messages.SESSION_RECOVERED
    await owned.abandon()
    assert (await store.sessions.head(key)).owner is None


async def _left(store: redis_store.RedisStore, key: records.SessionKey) -> records.Forgotten:
    (item,) = await store.sessions.inbox(key)
    assert await store.wake.hinted(keys.wake_shard(key), limit=10) == [key]
    assert item.forgotten is not None
    return item.forgotten


async def test_another_owner_is_left_alone(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """Whoever claimed the session in the store's new present is not written over: it is told."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(_turn("lost"))
    before.bring_back()
    second, _ = await activations.claim(store, blob_store, key)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(_turn("new"))
    head = await store.sessions.head(key)
    assert (head.version, head.nonce) == (1, second.head.nonce)
    assert await _left(store, key) == records.Forgotten(
        version=2, kept_version=1, first_seq=2, last_seq=2, requests=["lost"]
    )
    assert (await second.commit(_turn("new"))).version == 2


async def test_another_owner_has_written_since(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """The version alone would hide the loss; that the epoch has another nonce tells it."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(_turn("lost"))
    before.bring_back()
    second, _ = await activations.claim(store, blob_store, key)
    await second.commit(_turn("theirs"))
    with pytest.raises(errors.VersionsLost):
        await owned.commit(_turn("new"))
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
    await owned.commit(_turn("lost"))
    before.bring_back()
    for request_id in ("theirs-1", "theirs-2"):
        other, _ = await activations.claim(store, blob_store, key)
        await other.commit(_turn(request_id))
        await other.release()
    await activations.claim(store, blob_store, key)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(_turn("new"))
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
    await owned.commit(_turn("lost"))

    async def die(commit: records.Commit) -> records.Committed:
        before.bring_back()
        monkeypatch.undo()
        raise errors.OutcomeUnknown(session=commit.key.session)

    monkeypatch.setattr(store.sessions, "commit", die)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(_turn("under way"))
    assert (await _events(owned))[-1].data["lost"]["requests"] == ["lost"]
    await owned.abandon()
    assert (await store.sessions.head(key)).owner is None


async def test_no_loss_is_made_up(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore
) -> None:
    """An owner that was taken over while it slept is fenced, and nothing is reported."""
    key = await activations.new_session(store)
    owned, _ = await activations.claim(store, blob_store, key)
    second, _ = await activations.claim(store, blob_store, key)
    await second.commit(_turn("theirs"))
    with pytest.raises(errors.Fenced):
        await owned.commit(_turn("mine"))
    assert messages.SESSION_RECOVERED not in [event.type for event in await _events(second)]


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
    await owned.commit(_turn("lost"))

    async def die(commit: records.Commit) -> records.Committed:
        before.bring_back()
        monkeypatch.undo()
        raise errors.OutcomeUnknown(session=commit.key.session)

    monkeypatch.setattr(store.sessions, "commit", die)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(_turn("under way"))
    assert (await _events(owned))[-1].data["lost"]["requests"] == ["lost"]


async def test_a_claim_alone_is_no_loss(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """Whoever had only been woken is fenced, and nothing is reported: nobody was told of it."""
    key = await activations.new_session(store)
    first, _ = await activations.claim(store, blob_store, key)
    await first.commit(_turn("kept"))
    await first.release()
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    before.bring_back()
    with pytest.raises(errors.Fenced):
        await owned.commit(_turn("new"))
    assert messages.SESSION_RECOVERED not in [event.type for event in await _events(owned)]


async def test_others_have_written_as_much(
    store: redis_store.RedisStore, blob_store: local_blobs.LocalBlobStore, past: Callable[[], Past]
) -> None:
    """The loss is reported from the lost claim on: what has the same number is others'."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(_turn("lost"))
    before.bring_back()
    second, _ = await activations.claim(store, blob_store, key)
    await second.commit(_turn("theirs"))
    await second.release()
    with pytest.raises(errors.VersionsLost):
        await owned.commit(_turn("new"))
    report = (await _events(owned))[-1]
    assert (report.type, report.data["lost"]["versions"]) == (messages.SESSION_RECOVERED, [2, 2])


async def test_it_is_told_though_it_cannot_be_reported(
    store: redis_store.RedisStore,
    blob_store: local_blobs.LocalBlobStore,
    past: Callable[[], Past],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever calls is told also when the store goes away before the owner has claimed again."""
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(_turn("lost"))
    before.bring_back()

    async def away(claim: records.Acquire) -> records.Acquired:
        raise errors.StoreUnavailable(session=claim.key.session)

    monkeypatch.setattr(store.sessions, "acquire", away)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(_turn("new"))


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
        turn = _turn(request_id)
        drafts = (*turn.drafts,) * (limits.HOT_EVENTS_ASLEEP_MAX + 1)
        await owned.commit(msgspec.structs.replace(turn, drafts=drafts))
        if forgotten == "a seal":
            await owned.seal_if_longer_than(limits.HOT_EVENTS_ASLEEP_MAX)
            forgotten = "a seal that was made"
    before.bring_back()
    with pytest.raises(errors.VersionsLost):
        await owned.release()
    assert (await _events(owned))[-1].data["lost"]["requests"] == ["lost-1", "lost-2"]


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
