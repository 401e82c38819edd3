"""Whether the store still knows who is on a node."""

import pathlib

import pytest

from torpor import errors
from torpor.actors import recognition, slot_process, slot_stock
from torpor.storage import memory_store, records
from torpor.testing import store_samples

KIND = slot_stock.Kind(tenant="acme", agent=store_samples.agent_version("notebook", "digest"))


class Here:
    """Slots of a node, and its recognition."""

    def __init__(self, store: memory_store.MemoryStore) -> None:
        self.store = store
        self.recognition = recognition.Recognition(store)

    async def slot(self, *, known: bool) -> slot_process.Slot:
        """Return the slot of a new session, which has or has not claimed it."""
        head = await self.store.sessions.create(store_samples.new(store_samples.key()))
        claim = store_samples.claim(head)
        if known:
            await self.store.sessions.acquire(claim)
        made = slot_process.Slot(KIND, "actor", pathlib.Path("unused"))
        made.bind(claim)
        return made


@pytest.fixture
def here() -> Here:
    """A node with nobody on it, and a store that was away."""
    made = Here(memory_store.MemoryStore())
    made.store.connections_lost = 1
    return made


async def test_those_whose_claims_are_not_there_are_found(here: Here) -> None:
    """One look is enough, until the store was away again."""
    known, unknown = await here.slot(known=True), await here.slot(known=False)
    assert here.recognition.due()
    assert await here.recognition.forgotten([known, unknown]) == [unknown]
    assert not here.recognition.due()
    here.store.connections_lost += 1
    assert here.recognition.due()


async def test_a_session_that_is_gone_has_no_owner(here: Here) -> None:
    """Its creation may be among what the store has forgotten."""
    slot = await here.slot(known=True)
    await here.store.sessions.delete(slot.key)
    assert await here.recognition.forgotten([slot]) == [slot]


async def test_a_look_that_does_not_get_through_is_made_again(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store went away once more; what was found until then counts."""
    unknown, unseen = await here.slot(known=False), await here.slot(known=False)
    head = here.store.sessions.head

    async def away(key: records.SessionKey) -> records.Head:
        if key == unseen.key:
            raise errors.StoreUnavailable
        return await head(key)

    monkeypatch.setattr(here.store.sessions, "head", away)
    assert await here.recognition.forgotten([unknown, unseen]) == [unknown]
    assert here.recognition.due()


async def test_one_that_cannot_be_read_does_not_hide_the_others(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged head concerns its session alone."""
    damaged, unknown = await here.slot(known=True), await here.slot(known=False)
    head = here.store.sessions.head

    async def odd(key: records.SessionKey) -> records.Head:
        if key == damaged.key:
            raise KeyError("e")
        return await head(key)

    monkeypatch.setattr(here.store.sessions, "head", odd)
    assert await here.recognition.forgotten([damaged, unknown]) == [unknown]
    assert not here.recognition.due()
