"""Damaged sessions wake as they last were whole: real store, real files, one process."""

import dataclasses
import pathlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

import msgspec
import pytest

import torpor
from torpor import errors, limits, messages
from torpor.actors import ownership, recovery
from torpor.storage import (
    keyring,
    keys,
    local_blobs,
    manifest,
    records,
    redis_store,
    segments,
    storage_proof,
    store,
)
from torpor.testing import activations, store_samples, valkey

LARGE = limits.INLINE_STATE_BYTES_MAX


class Keeper(torpor.Agent):
    """Keeps the number of its last turn in its state and in files; one file never changes."""

    #: What `on_recover` was told in this process, of all sessions.
    told: ClassVar[list[torpor.Lost]] = []
    #: What it is to do.
    hook: ClassVar[Callable[["Keeper", torpor.Lost], None] | None] = None

    def __init__(self) -> None:
        self.turns = 0
        self.ballast = b""
        self.lost: torpor.Lost | None = None

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> torpor.Reply:
        """Say what is there after a turn; `read` says it and leaves it as it is."""
        root, below = ctx.workspace / "root", ctx.workspace / "d" / "below"
        if message.text != "read":
            self.turns += 1
            self.ballast = bytes([self.turns]) * LARGE if message.text == "large" else b""
            below.parent.mkdir(exist_ok=True)
            (ctx.workspace / "same").write_text("same")
            root.write_text(f"root {self.turns}")
            below.write_text(f"below {self.turns}")
        found = sorted(
            str(path.relative_to(ctx.workspace))
            for path in ctx.workspace.rglob("*")
            if path.is_file()
        )
        return torpor.Reply(data={"turns": self.turns, "files": found})

    async def on_recover(self, lost: torpor.Lost) -> None:
        """Take note, here and in the state."""
        type(self).told.append(lost)
        self.lost = lost
        if type(self).hook is not None:
            type(self).hook(self, lost)


class Silent(torpor.Agent):
    """Has no `on_recover`."""

    def __init__(self) -> None:
        self.turns = 0

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Count."""
        self.turns += 1
        (ctx.workspace / "turns").write_text(str(self.turns))
        return str(self.turns)


@dataclasses.dataclass
class Place:
    """A store, its shared storage, and sessions that come and go."""

    store: redis_store.RedisStore
    server: valkey.Server
    folder: pathlib.Path
    alive: list[activations.Activation]

    @property
    def storage(self) -> pathlib.Path:
        """The shared folder."""
        return self.folder / "storage"

    async def wake(
        self,
        key: records.SessionKey,
        *,
        agent: type[torpor.Agent] = Keeper,
        stored: Any = None,
        storage: pathlib.Path | None = None,
    ) -> activations.Activation:
        """Wake it in what is another process to it."""
        made = await activations.activate(
            stored or self.store,
            key,
            agent,
            self.folder,
            blob_store=local_blobs.LocalBlobStore(storage or self.storage),
        )
        self.alive.append(made)
        return made

    async def lived(
        self, turns: int, text: str = "small", agent: type[torpor.Agent] = Keeper
    ) -> records.SessionKey:
        """Return a session that had so many turns (turn n is version n + 1), and crashed."""
        key = await activations.new_session(self.store)
        here = await self.wake(key, agent=agent)
        for _ in range(turns):
            await here.send(text)
        await here.close()
        return key

    async def head(self, key: records.SessionKey) -> records.Head:
        """Return the head."""
        return await self.store.sessions.head(key)

    async def points(self, key: records.SessionKey) -> list[records.RestorePoint]:
        """Return the restore points, newest first."""
        return await self.store.sessions.restore_points(key)

    def blob(self, digest: str) -> pathlib.Path:
        """Return where a blob lies."""
        return self.storage / "acme" / "blobs" / digest[3:5] / digest

    def entry(self, digest: str, name: str) -> manifest.Entry:
        """Return an entry of a folder by the folder's manifest."""
        found = manifest.find(
            local_blobs.LocalBlobStore(self.storage), "acme", digest, name.encode()
        )
        assert found is not None
        return found

    async def events(self, key: records.SessionKey) -> list[messages.Event]:
        """Return the whole history, which has no gap."""
        page = await self.store.sessions.hot(key, after=0, limit=1_000)
        assert [event.seq for event in page.events] == list(range(1, page.next_seq))
        return page.events


@pytest.fixture
async def place(
    store_server: valkey.Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    """Yield a place whose storage is known to the store."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(Keeper, "told", [])
    store_server.call("DEL", keys.STORAGE)
    opened = redis_store.open(store_samples.deployment_at(store_server.url))
    here = Place(store=opened, server=store_server, folder=tmp_path, alive=[])
    await storage_proof.establish(opened.catalog, local_blobs.LocalBlobStore(here.storage))
    yield here
    for activation in here.alive:
        await activation.close()
    await opened.close()


def _flip(path: pathlib.Path) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


def _truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


Damage = Callable[[pathlib.Path], None]
DAMAGES: Sequence[Damage] = (_flip, _truncate, pathlib.Path.unlink)
damaged = pytest.mark.parametrize("damage", DAMAGES, ids=["flipped", "truncated", "gone"])


async def _damage(place: Place, point: records.RestorePoint, part: str, damage: Damage) -> None:
    """Damage one part of a version."""
    assert point.checkpoint is not None
    folder = place.entry(point.manifest, "d")
    match part:
        case "state":
            damage(place.blob(point.checkpoint.state))
        case "root":
            damage(place.blob(point.manifest))
        case "folder":
            damage(place.blob(folder.digest))
        case "file":
            damage(place.blob(place.entry(folder.digest, "below").digest))
        case "same":
            damage(place.blob(place.entry(point.manifest, "same").digest))


async def _read(here: activations.Activation) -> dict[str, Any]:
    return (await here.send("read")).data


@pytest.mark.parametrize("part", ["state", "root", "folder", "file"])
@damaged
async def test_back_to_the_version_before(place: Place, part: str, damage: Damage) -> None:
    """State and files are as they were one turn ago, whichever part of the newest is damaged."""
    key = await place.lived(4, "large")
    before, head = await place.events(key), await place.head(key)
    newest = (await place.points(key))[0]
    await _damage(place, newest, part, damage)
    here = await place.wake(key)
    assert await _read(here) == {"turns": 3, "files": ["d/below", "root", "same"]}
    assert (here.workspace / "d" / "below").read_text() == "below 3"
    lost = torpor.Lost(
        from_version=5, to_version=4, versions=(5, 5), state=True, files=(), files_total=0
    )
    assert Keeper.told == [lost]
    events = await place.events(key)
    assert events[: len(before)] == before
    told = events[len(before)]
    assert (told.type, told.version) == (messages.SESSION_RECOVERED, 6)
    assert head.checkpoint is not None
    assert told.data.pop("error")["reason"] in {"BLOB_CORRUPT", "BLOB_MISSING"}
    assert told.data == {
        "reason": recovery.REASON,
        "from_version": 5,
        "to_version": 4,
        "lost": {"versions": [5, 5], "state": True, "files": [], "files_total": 0},
        "quarantined": {
            "version": 5,
            "state": head.checkpoint.state,
            "manifest": head.manifest,
        },
    }


@pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
async def test_state_in_the_store(place: Place, how: str) -> None:
    """An envelope that lies in the store is looked at in the same way."""
    key = await place.lived(3)
    whole = (await place.points(key))[0].inline_state
    assert whole is not None
    left = {"flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "truncated": whole[:-1], "gone": b""}
    await place.store._wire.write(("LSET", keys.checkpoints(key), 0, left[how]))
    here = await place.wake(key)
    assert (await _read(here))["turns"] == 2
    assert Keeper.told[0].versions == (4, 4)


@pytest.mark.parametrize("versions", [1, 2, 3])
@pytest.mark.parametrize("part", ["state", "root"])
async def test_back_over_several_versions(place: Place, versions: int, part: str) -> None:
    """The newest version that is whole is taken, however many after it are damaged."""
    key = await place.lived(6, "large")
    for point in (await place.points(key))[:versions]:
        await _damage(place, point, part, _flip)
    here = await place.wake(key)
    assert await _read(here) == {"turns": 6 - versions, "files": ["d/below", "root", "same"]}
    assert (here.workspace / "root").read_text() == f"root {6 - versions}"
    assert Keeper.told[0].versions == (8 - versions, 7)


async def test_state_and_files_are_of_one_version(place: Place) -> None:
    """A good state with damaged files and good files with a damaged state do not make a whole."""
    key = await place.lived(5, "large")
    points = await place.points(key)
    await _damage(place, points[0], "state", _flip)
    await _damage(place, points[1], "root", _flip)
    here = await place.wake(key)
    assert (await _read(here))["turns"] == 3
    assert (here.workspace / "root").read_text() == "root 3"


@pytest.mark.parametrize("part", ["same", "every root"])
@damaged
async def test_no_version_has_all_its_files(place: Place, part: str, damage: Damage) -> None:
    """Then the newest state stays, and the files that are damaged are left out and named."""
    key = await place.lived(5)
    for point in (await place.points(key))[: 1 if part == "same" else None]:
        await _damage(place, point, part.removeprefix("every "), damage)
    here = await place.wake(key)
    files, left_out = (["d/below", "root"], "same") if part == "same" else ([], "./")
    assert await _read(here) == {"turns": 5, "files": files}
    (lost,) = Keeper.told
    assert (lost.from_version, lost.to_version, lost.versions) == (6, 6, ())
    assert (lost.state, lost.files, lost.files_total) == (False, (left_out,), 1)
    await here.close()
    assert await _read(await place.wake(key)) == {"turns": 5, "files": files}
    assert len(Keeper.told) == 1


async def test_folder_that_is_damaged_everywhere(place: Place) -> None:
    """What is in a folder whose list is damaged is left out; what is beside it stays."""
    key = await place.lived(3)
    for point in await place.points(key):
        await _damage(place, point, "folder", _flip)
    here = await place.wake(key)
    assert await _read(here) == {"turns": 3, "files": ["root", "same"]}
    assert Keeper.told[0].files == ("d/",)


async def test_everything_is_damaged(place: Place) -> None:
    """Without a whole state nothing is changed; put right, the session wakes as if never."""
    key = await place.lived(3, "large")
    points = [point for point in await place.points(key) if point.checkpoint]
    for point in points:
        await _damage(place, point, "state", _flip)
    before, events = await place.points(key), await place.events(key)
    for _ in range(2):
        with pytest.raises(errors.BlobCorrupt, match="backup"):
            await place.wake(key)
        assert (await place.head(key)).owner is None
    assert (await place.points(key), await place.events(key)) == (before, events)
    for point in points:
        await _damage(place, point, "state", _flip)
    assert (await _read(await place.wake(key)))["turns"] == 3
    assert Keeper.told == []


async def test_the_next_wake_is_an_ordinary_one(place: Place) -> None:
    """A recovery is told once; the session goes on, and its outcomes and history are all there."""
    key = await place.lived(3, "large")
    await _damage(place, (await place.points(key))[0], "state", _flip)
    here = await place.wake(key)
    await here.send("large")
    await here.close()
    again = await place.wake(key)
    assert (await _read(again))["turns"] == 3
    events = await place.events(key)
    assert [event.type for event in events].count(messages.SESSION_RECOVERED) == 1
    assert len(Keeper.told) == 1
    assert sorted({event.version for event in events}) == list(range(1, events[-1].version + 1))


async def test_request_of_a_lost_version_is_not_handled_again(place: Place) -> None:
    """History stays whole: what was answered in a version that is lost is answered from it."""
    key = await activations.new_session(place.store)
    here = await place.wake(key)
    await here.send("large", "first")
    said = await here.send("large", "second")
    await here.close()
    await _damage(place, (await place.points(key))[0], "state", _flip)
    later = await place.wake(key)
    again = await later.send("large", "second")
    assert again == msgspec.structs.replace(said, repeated=True)
    assert (await _read(later))["turns"] == 1


@pytest.mark.parametrize("marker", ["", "storage-of-others"])
async def test_storage_that_is_not_there(place: Place, marker: str) -> None:
    """An empty folder, as where nothing is mounted, and another's folder are no damage."""
    key = await place.lived(3, "large")
    before = await place.points(key)
    other = place.folder / "mountpoint"
    other.mkdir()
    if marker:
        (other / ".torpor-storage").write_text(marker)
    with pytest.raises(errors.StorageUnavailable, match="Mount the right folder"):
        await place.wake(key, storage=other)
    assert await place.points(key) == before
    assert (await place.head(key)).owner is None
    assert (await _read(await place.wake(key)))["turns"] == 3
    assert Keeper.told == []


async def test_storage_that_is_not_known(place: Place) -> None:
    """Where no node has made a storage known nothing is concluded from it."""
    key = await place.lived(2, "large")
    place.server.call("DEL", keys.STORAGE)
    await _damage(place, (await place.points(key))[0], "state", _flip)
    with pytest.raises(errors.StorageUnavailable, match="start a node"):
        await place.wake(key)


@pytest.mark.parametrize("text", ["small", "large"])
async def test_key_that_is_missing_is_no_damage(
    place: Place, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Bytes that are as named, and signed with a key that is not here, are not left behind."""
    key = await place.lived(2, text)
    before = await place.points(key)
    with monkeypatch.context() as patch:
        other = {"k2": b"\2" * keyring.KEY_BYTES}
        patch.setattr(
            activations, "KEYS", keyring.TenantKeys(tenant="acme", signing_id="k2", keys=other)
        )
        with pytest.raises(errors.CheckpointCorrupt, match="put that key back"):
            await place.wake(key)
    assert await place.points(key) == before
    assert (await _read(await place.wake(key)))["turns"] == 2
    assert Keeper.told == []


async def test_what_on_recover_changes_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State and files as it leaves them are committed with the event, in one version."""

    def mend(agent: Keeper, lost: torpor.Lost) -> None:
        agent.turns = 100
        pathlib.Path("note").write_text("mended")

    monkeypatch.setattr(Keeper, "hook", staticmethod(mend))
    key = await place.lived(3, "large")
    await _damage(place, (await place.points(key))[0], "state", _flip)
    here = await place.wake(key)
    head = await place.head(key)
    assert head.version == 5
    assert head.checkpoint is not None
    assert head.checkpoint.version == 5
    await here.close()
    later = await place.wake(key)
    assert await _read(later) == {"turns": 100, "files": ["d/below", "note", "root", "same"]}
    assert len(Keeper.told) == 1


async def test_agent_without_on_recover(place: Place) -> None:
    """The checkpoint is that of the restore point, byte for byte."""
    key = await place.lived(3, agent=Silent)
    newest, kept, *_ = await place.points(key)
    place.blob(newest.manifest).unlink()
    await place.wake(key, agent=Silent)
    head, points = await place.head(key), await place.points(key)
    assert (head.version, head.checkpoint, head.manifest) == (5, kept.checkpoint, kept.manifest)
    assert points[0].inline_state == kept.inline_state
    assert [point.version for point in points] == [5, 2]


async def test_on_recover_that_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is as it was, and the next wake tries again."""

    def fail(agent: Keeper, lost: torpor.Lost) -> None:
        raise ValueError("not now")

    key = await place.lived(3, "large")
    await _damage(place, (await place.points(key))[0], "state", _flip)
    before = await place.points(key)
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "hook", staticmethod(fail))
        with pytest.raises(ValueError, match="not now"):
            await place.wake(key)
    assert await place.points(key) == before
    assert (await _read(await place.wake(key)))["turns"] == 2


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
async def test_process_ends_at_the_commit(place: Place, *, carried_out: bool) -> None:
    """Before it nothing has happened, and the next process does the same; after it, all has."""
    key = await place.lived(3, "large")
    await _damage(place, (await place.points(key))[0], "state", _flip)
    with pytest.raises(errors.Unavailable):
        await place.wake(key, stored=Breaking(place.store, carried_out=carried_out))
    assert (await place.head(key)).version == (5 if carried_out else 4)
    here = await place.wake(key)
    assert (await _read(here))["turns"] == 2
    types = [event.type for event in await place.events(key)]
    assert types.count(messages.SESSION_RECOVERED) == 1
    assert Keeper.told == [Keeper.told[0]] * (1 if carried_out else 2)


async def test_writing_the_same_again_mends_a_blob(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that `on_recover` makes anew, byte for byte, is not damaged any more."""

    def mend(agent: Keeper, lost: torpor.Lost) -> None:
        for name in lost.files:
            pathlib.Path(name).write_text("same")

    monkeypatch.setattr(Keeper, "hook", staticmethod(mend))
    key = await place.lived(3)
    await _damage(place, (await place.points(key))[0], "same", _flip)
    await (await place.wake(key)).close()
    assert (await _read(await place.wake(key)))["files"] == ["d/below", "root", "same"]
    assert len(Keeper.told) == 1


async def test_files_before_the_first_turn(place: Place) -> None:
    """A session that has only files wakes without those that are damaged, as a new agent."""
    key = await activations.new_session(place.store)
    blob_store = local_blobs.LocalBlobStore(place.storage)
    owned, _ = await activations.claim(place.store, blob_store, key)
    with blob_store.upload("acme") as upload:
        digest = upload.put(
            manifest.encode(
                manifest.Page(
                    entries=(
                        manifest.Entry(
                            name=b"given",
                            kind=manifest.Kind.FILE,
                            mode=0o600,
                            size_bytes=5,
                            digest=upload.put(b"given"),
                        ),
                    )
                )
            )
        )
    await owned.commit(ownership.Change(manifest=digest))
    _flip(place.blob(place.entry(digest, "given").digest))
    assert await _read(await place.wake(key)) == {"turns": 0, "files": []}
    assert Keeper.told[0].files == ("given",)


@pytest.mark.parametrize("part", ["index", "segment"])
async def test_cold_history_of_the_last_hour(place: Place, part: str) -> None:
    """Without it nobody knows which requests were handled: an error, with the remedy."""
    key = await activations.new_session(place.store)
    here = await place.wake(key)
    for _ in range(limits.HOT_EVENTS_KEPT):
        await here.send("small")
    await here.owned.seal_if_longer_than(limits.HOT_EVENTS_KEPT)
    await here.close()
    index = (await place.head(key)).cold_index
    (entry,) = segments.read_index(local_blobs.LocalBlobStore(place.storage), "acme", index)
    _flip(place.blob(index if part == "index" else entry.digest))
    with pytest.raises(errors.BlobCorrupt, match="backup"):
        await place.wake(key)
    assert (await place.head(key)).owner is None
