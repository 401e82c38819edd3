"""Telling of a loss, though the store that had it goes away again."""

import pathlib
from collections.abc import Callable

import pytest

from torpor import errors, messages
from torpor.actors import loss_report
from torpor.storage import local_blobs, records, redis_store
from torpor.testing import activations
from torpor.testing.past import Past, events, turn


@pytest.fixture
def blob_store(tmp_path: pathlib.Path) -> local_blobs.LocalBlobStore:
    """An empty blob store."""
    return local_blobs.LocalBlobStore(tmp_path / "blobs")


@pytest.fixture
def store(own_store: redis_store.RedisStore) -> redis_store.RedisStore:
    """A store that can go back."""
    return own_store


@pytest.mark.parametrize("refusal", [errors.InboxFull, errors.StoreUnavailable])
async def test_it_is_told_though_it_cannot_be_reported(
    store: redis_store.RedisStore,
    blob_store: local_blobs.LocalBlobStore,
    past: Callable[[], Past],
    monkeypatch: pytest.MonkeyPatch,
    refusal: type[errors.TorporError],
) -> None:
    """Whoever calls is told also when the inbox is full, or the store goes away for long."""
    monkeypatch.setattr(loss_report, "PAUSE_S", 0.0)
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    await owned.commit(turn("lost"))
    before.bring_back()

    async def refuse(*_: object) -> records.Enqueued:
        raise refusal

    monkeypatch.setattr(store.sessions, "enqueue", refuse)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("new"))


@pytest.mark.parametrize("mine", [False, True])
async def test_it_is_reported_once_though_answers_are_lost(
    store: redis_store.RedisStore,
    blob_store: local_blobs.LocalBlobStore,
    past: Callable[[], Past],
    monkeypatch: pytest.MonkeyPatch,
    mine: bool,
) -> None:
    """A store that has just come back may go away again: the report is tried until it is there."""
    monkeypatch.setattr(loss_report, "PAUSE_S", 0.0)
    key = await activations.new_session(store)
    before = past()
    owned, _ = await activations.claim(store, blob_store, key)
    before = past() if mine else before
    await owned.commit(turn("lost"))
    before.bring_back()
    method = "commit" if mine else "enqueue"
    write, tries = getattr(store.sessions, method), 0

    async def lose(*arguments: object) -> object:
        nonlocal tries
        tries += 1
        if not mine or tries > 1:
            # The first commit is the turn's, which is refused.
            answer = await write(*arguments)
        if tries == 1 and mine:
            return await write(*arguments)
        if tries <= 2:
            raise errors.OutcomeUnknown
        return answer

    monkeypatch.setattr(store.sessions, method, lose)
    with pytest.raises(errors.VersionsLost):
        await owned.commit(turn("new"))
    reports = [each.type for each in await events(owned)].count(messages.SESSION_RECOVERED)
    assert reports + len(await store.sessions.inbox(key)) == 1
