"""A session that leaves a node and comes back to it finds its files where they were."""

import pathlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import torpor
from torpor.actors import protocol, remains
from torpor.storage import digests, kept_description, kept_workspaces, local_blobs, memory_store
from torpor.testing import activations, clock, workspaces

Activate = Callable[[], Awaitable[activations.Activation]]


class Writer(torpor.Agent):
    """Writes what it is told, fails when told to, and meddles with its files as it leaves."""

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Write, or fail; answer what was there before."""
        file = ctx.workspace / "file"
        before = file.read_text() if file.exists() else ""
        file.write_text(message.text)
        self.file = file
        if message.text == "fail":
            raise ValueError("as told")
        return before

    async def on_evict(self) -> None:
        """Write something that no commit names."""
        self.file.write_text("too late")


@pytest.fixture
def store() -> memory_store.MemoryStore:
    """A store in memory."""
    return memory_store.MemoryStore()


@pytest.fixture
def blobs(tmp_path: pathlib.Path) -> workspaces.RecordingBlobs:
    """Return blobs that take note of what is read."""
    return workspaces.RecordingBlobs(local_blobs.LocalBlobStore(tmp_path))


@pytest.fixture
async def activate(
    store: memory_store.MemoryStore,
    blobs: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Activate]:
    """Yield a function that activates one session of a `Writer` on one node."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(remains, "_has_children", lambda: False)
    key = await activations.new_session(store)
    kept = kept_workspaces.KeptWorkspaces(tmp_path / "kept", clock.FakeClock())
    made: list[activations.Activation] = []

    async def one() -> activations.Activation:
        slot = tmp_path / f"slot-{len(made) + 1}"
        slot.mkdir()
        if made:
            kept.keep(made[-1].workspace.parent, key)
            kept.take(key, slot)
        blobs.forget()
        made.append(await activations.activate(store, key, Writer, tmp_path, blob_store=blobs))
        return made[-1]

    yield one
    for activation in made:
        await activation.close()


async def _leave(here: activations.Activation) -> None:
    protocol.accept(await here.put(protocol.Leave(epoch=here.residence.epoch)))
    await here.ended()


async def test_files_of_a_session_that_left_are_used_again(
    activate: Activate, blobs: workspaces.RecordingBlobs, tmp_path: pathlib.Path
) -> None:
    """The next wake reads only the file that was written after the last commit, as it was then."""
    here = await activate()
    await here.send("1")
    await _leave(here)
    assert (here.workspace / "file").read_text() == "too late"
    again = await activate()
    assert digests.of(b"1") in blobs.reads
    assert here.owned.head.manifest not in blobs.reads
    assert (await again.send("2")).text == "1"
    assert not (tmp_path / "slot-2" / "kept" / kept_description.NAME).exists()


async def test_a_session_that_failed_leaves_nothing(activate: Activate) -> None:
    """Half a turn's files are nobody's: the next wake restores those of the last commit."""
    here = await activate()
    await here.send("1")
    await here.send("fail")
    await here.ended()
    assert kept_description.head(here.workspace.parent) is None
    again = await activate()
    assert (await again.send("2")).text == "1"
