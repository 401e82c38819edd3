"""Agents are told of a recovery, and what they make of it is committed with it, or nothing is."""

import pathlib
from typing import Any

import pytest

import torpor
from torpor import errors, messages
from torpor.storage import records, store
from torpor.testing import damage


async def test_what_on_recover_changes_is_kept(
    place: damage.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State and files as it leaves them are committed with the event, in one version."""

    def mend(agent: damage.Keeper, lost: torpor.Lost) -> None:
        agent.turns = 100
        pathlib.Path("note").write_text("mended")

    monkeypatch.setattr(damage.Keeper, "hook", staticmethod(mend))
    key = await place.lived(3, "large")
    damage.do(place, (await place.points(key))[0], "state")
    here = await place.wake(key)
    head = await place.head(key)
    assert head.version == 5
    assert head.checkpoint is not None
    assert head.checkpoint.version == 5
    await here.close()
    later = await place.wake(key)
    assert await damage.read(later) == {"turns": 100, "files": ["d/below", "note", "root", "same"]}
    assert len(damage.Keeper.told) == 1


async def test_agent_without_on_recover(place: damage.Place) -> None:
    """The checkpoint is that of the restore point, byte for byte."""
    key = await place.lived(3, agent=damage.Silent)
    newest, kept, *_ = await place.points(key)
    place.blob(newest.manifest).unlink()
    await place.wake(key, agent=damage.Silent)
    head, points = await place.head(key), await place.points(key)
    assert (head.version, head.checkpoint, head.manifest) == (5, kept.checkpoint, kept.manifest)
    assert points[0].inline_state == kept.inline_state
    assert [point.version for point in points] == [5, 2]


async def test_on_recover_that_fails(place: damage.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is as it was, and the next wake tries again."""

    def fail(agent: damage.Keeper, lost: torpor.Lost) -> None:
        raise ValueError("not now")

    key = await place.lived(3, "large")
    damage.do(place, (await place.points(key))[0], "state")
    before = await place.points(key)
    with monkeypatch.context() as patch:
        patch.setattr(damage.Keeper, "hook", staticmethod(fail))
        with pytest.raises(ValueError, match="not now"):
            await place.wake(key)
    assert await place.points(key) == before
    assert (await damage.read(await place.wake(key)))["turns"] == 2


class Breaking:
    """A store whose sessions break at the next commit, before it or after."""

    def __init__(self, inner: store.Store, *, carried_out: bool) -> None:
        self._inner = inner
        self._carried_out = carried_out
        self.sessions: Any = self
        self.catalog, self.wake, self.feed = inner.catalog, inner.wake, inner.feed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner.sessions, name)

    async def commit(self, commit: records.Commit) -> records.Committed:
        """Break."""
        if not self._carried_out:
            raise errors.StoreReadOnly
        await self._inner.sessions.commit(commit)
        raise errors.OutcomeUnknown


@pytest.mark.parametrize("carried_out", [False, True])
async def test_process_ends_at_the_commit(place: damage.Place, *, carried_out: bool) -> None:
    """Before it nothing has happened, and the next process does the same; after it, all has."""
    key = await place.lived(3, "large")
    damage.do(place, (await place.points(key))[0], "state")
    with pytest.raises(errors.Unavailable):
        await place.wake(key, stored=Breaking(place.store, carried_out=carried_out))
    assert (await place.head(key)).version == (5 if carried_out else 4)
    here = await place.wake(key)
    assert (await damage.read(here))["turns"] == 2
    types = [event.type for event in await place.events(key)]
    assert types.count(messages.SESSION_RECOVERED) == 1
    assert damage.Keeper.told == [damage.Keeper.told[0]] * (1 if carried_out else 2)


async def test_writing_the_same_again_mends_a_blob(
    place: damage.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that `on_recover` makes anew, byte for byte, is not damaged any more."""

    def mend(agent: damage.Keeper, lost: torpor.Lost) -> None:
        for name in lost.files:
            pathlib.Path(name).write_text("same")

    monkeypatch.setattr(damage.Keeper, "hook", staticmethod(mend))
    key = await place.lived(3)
    damage.do(place, (await place.points(key))[0], "same")
    await (await place.wake(key)).close()
    assert (await damage.read(await place.wake(key)))["files"] == ["d/below", "root", "same"]
    assert len(damage.Keeper.told) == 1
