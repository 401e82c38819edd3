"""Damaged sessions wake as they last were whole: real store, real files, one process."""

import msgspec
import pytest

import torpor
from torpor import errors, limits, messages
from torpor.actors import changes, recovery
from torpor.storage import keyring, keys, local_blobs, manifest, segments
from torpor.testing import activations, damage

kinds = pytest.mark.parametrize("kind", damage.KINDS)


@pytest.mark.parametrize("part", ["state", "root", "folder", "file"])
@kinds
async def test_back_to_the_version_before(place: damage.Place, part: str, kind: str) -> None:
    """State and files are as they were one turn ago, whichever part of the newest is damaged."""
    key = await place.lived(4, "large")
    before, head = await place.events(key), await place.head(key)
    newest = (await place.points(key))[0]
    damage.do(place, newest, part, kind)
    here = await place.wake(key)
    assert await damage.read(here) == {"turns": 3, "files": ["d/below", "root", "same"]}
    assert (here.workspace / "d" / "below").read_text() == "below 3"
    lost = torpor.Lost(
        from_version=5, to_version=4, versions=(5, 5), state=True, files=(), files_total=0
    )
    assert damage.Keeper.told == [lost]
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
async def test_state_in_the_store(place: damage.Place, how: str) -> None:
    """An envelope that lies in the store is looked at in the same way."""
    key = await place.lived(3)
    whole = (await place.points(key))[0].inline_state
    assert whole is not None
    left = {"flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "truncated": whole[:-1], "gone": b""}
    await place.store._wire.write(("LSET", keys.checkpoints(key), 0, left[how]))
    here = await place.wake(key)
    assert (await damage.read(here))["turns"] == 2
    assert damage.Keeper.told[0].versions == (4, 4)


@pytest.mark.parametrize("versions", [1, 2, 3])
@pytest.mark.parametrize("part", ["state", "root"])
async def test_back_over_several_versions(place: damage.Place, versions: int, part: str) -> None:
    """The newest version that is whole is taken, however many after it are damaged."""
    key = await place.lived(6, "large")
    for point in (await place.points(key))[:versions]:
        damage.do(place, point, part)
    here = await place.wake(key)
    assert await damage.read(here) == {"turns": 6 - versions, "files": ["d/below", "root", "same"]}
    assert (here.workspace / "root").read_text() == f"root {6 - versions}"
    assert damage.Keeper.told[0].versions == (8 - versions, 7)


async def test_state_and_files_are_of_one_version(place: damage.Place) -> None:
    """A good state with damaged files and good files with a damaged state do not make a whole."""
    key = await place.lived(5, "large")
    points = await place.points(key)
    damage.do(place, points[0], "state")
    damage.do(place, points[1], "root")
    here = await place.wake(key)
    assert (await damage.read(here))["turns"] == 3
    assert (here.workspace / "root").read_text() == "root 3"


@pytest.mark.parametrize("part", ["same", "every root"])
@kinds
async def test_no_version_has_all_its_files(place: damage.Place, part: str, kind: str) -> None:
    """Then the newest state stays, and the files that are damaged are left out and named."""
    key = await place.lived(5)
    for point in (await place.points(key))[: 1 if part == "same" else None]:
        damage.do(place, point, part.removeprefix("every "), kind)
    here = await place.wake(key)
    files, left_out = (["d/below", "root"], "same") if part == "same" else ([], "./")
    assert await damage.read(here) == {"turns": 5, "files": files}
    (lost,) = damage.Keeper.told
    assert (lost.from_version, lost.to_version, lost.versions) == (6, 6, ())
    assert (lost.state, lost.files, lost.files_total) == (False, (left_out,), 1)
    await here.close()
    assert await damage.read(await place.wake(key)) == {"turns": 5, "files": files}
    assert len(damage.Keeper.told) == 1


async def test_folder_that_is_damaged_everywhere(place: damage.Place) -> None:
    """What is in a folder whose list is damaged is left out; what is beside it stays."""
    key = await place.lived(3)
    for point in await place.points(key):
        damage.do(place, point, "folder")
    here = await place.wake(key)
    assert await damage.read(here) == {"turns": 3, "files": ["root", "same"]}
    assert damage.Keeper.told[0].files == ("d/",)


async def test_everything_is_damaged(place: damage.Place) -> None:
    """Without a whole state nothing is changed; put right, the session wakes as if never."""
    key = await place.lived(3, "large")
    points = [point for point in await place.points(key) if point.checkpoint]
    for point in points:
        damage.do(place, point, "state")
    before, events = await place.points(key), await place.events(key)
    for _ in range(2):
        with pytest.raises(errors.BlobCorrupt, match="backup"):
            await place.wake(key)
        assert (await place.head(key)).owner is None
    assert (await place.points(key), await place.events(key)) == (before, events)
    for point in points:
        damage.do(place, point, "state")
    assert (await damage.read(await place.wake(key)))["turns"] == 3
    assert damage.Keeper.told == []


async def test_the_next_wake_is_an_ordinary_one(place: damage.Place) -> None:
    """A recovery is told once; the session goes on, and its outcomes and history are all there."""
    key = await place.lived(3, "large")
    damage.do(place, (await place.points(key))[0], "state")
    here = await place.wake(key)
    await here.send("large")
    await here.close()
    again = await place.wake(key)
    assert (await damage.read(again))["turns"] == 3
    events = await place.events(key)
    assert [event.type for event in events].count(messages.SESSION_RECOVERED) == 1
    assert len(damage.Keeper.told) == 1
    assert sorted({event.version for event in events}) == list(range(1, events[-1].version + 1))


async def test_request_of_a_lost_version_is_not_handled_again(place: damage.Place) -> None:
    """History stays whole: what was answered in a version that is lost is answered from it."""
    key = await activations.new_session(place.store)
    here = await place.wake(key)
    await here.send("large", "first")
    said = await here.send("large", "second")
    await here.close()
    damage.do(place, (await place.points(key))[0], "state")
    later = await place.wake(key)
    again = await later.send("large", "second")
    assert again == msgspec.structs.replace(said, repeated=True)
    assert (await damage.read(later))["turns"] == 1


@pytest.mark.parametrize("marker", ["", "storage-of-others"])
async def test_storage_that_is_not_there(place: damage.Place, marker: str) -> None:
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
    assert (await damage.read(await place.wake(key)))["turns"] == 3
    assert damage.Keeper.told == []


async def test_storage_that_is_not_known(place: damage.Place) -> None:
    """Where no node has made a storage known nothing is concluded from it."""
    key = await place.lived(2, "large")
    place.server.call("DEL", keys.STORAGE)
    damage.do(place, (await place.points(key))[0], "state")
    with pytest.raises(errors.StorageUnavailable, match="start a node"):
        await place.wake(key)


@pytest.mark.parametrize("text", ["small", "large"])
async def test_key_that_is_missing_is_no_damage(
    place: damage.Place, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Bytes that are as named, and signed with a key that is not here, are not left behind.

    Though there is an older version whose key is here: this node lacks a key, that is all.
    """
    key = await place.lived(2, text)
    both = {**activations.KEYS.keys, "k2": b"\2" * keyring.KEY_BYTES}
    rotated = keyring.TenantKeys(tenant="acme", signing_id="k2", keys=both)
    with monkeypatch.context() as patch:
        patch.setattr(activations, "KEYS", rotated)
        here = await place.wake(key)
        await here.send(text)
        await here.close()
    before = await place.points(key)
    with pytest.raises(errors.CheckpointCorrupt, match="put that key back"):
        await place.wake(key)
    assert await place.points(key) == before
    monkeypatch.setattr(activations, "KEYS", rotated)
    assert (await damage.read(await place.wake(key)))["turns"] == 3
    assert damage.Keeper.told == []


async def test_files_before_the_first_turn(place: damage.Place) -> None:
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
    await owned.commit(changes.Change(manifest=digest))
    damage.flip(place.blob(place.entry(digest, "given").digest))
    assert await damage.read(await place.wake(key)) == {"turns": 0, "files": []}
    assert damage.Keeper.told[0].files == ("given",)


@pytest.mark.parametrize("part", ["index", "segment"])
async def test_cold_history_of_the_last_hour(place: damage.Place, part: str) -> None:
    """Without it nobody knows which requests were handled: an error, with the remedy."""
    key = await activations.new_session(place.store)
    here = await place.wake(key)
    for _ in range(limits.HOT_EVENTS_KEPT):
        await here.send("small")
    await here.owned.seal_if_longer_than(limits.HOT_EVENTS_KEPT)
    await here.close()
    index = (await place.head(key)).cold_index
    (entry,) = segments.read_index(local_blobs.LocalBlobStore(place.storage), "acme", index)
    damage.flip(place.blob(index if part == "index" else entry.digest))
    with pytest.raises(errors.BlobCorrupt, match="backup"):
        await place.wake(key)
    assert (await place.head(key)).owner is None


async def test_storage_that_is_away_while_the_last_hour_is_read(
    place: damage.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever keeps the history from being read: the claim is given up."""
    key = await activations.new_session(place.store)
    here = await place.wake(key)
    for _ in range(limits.HOT_EVENTS_KEPT):
        await here.send("small")
    await here.owned.seal_if_longer_than(limits.HOT_EVENTS_KEPT)
    await here.close()

    def away(*_: object, **__: object) -> bytes:
        raise errors.StorageUnavailable

    monkeypatch.setattr(local_blobs.LocalBlobStore, "get", away)
    with pytest.raises(errors.StorageUnavailable):
        await place.wake(key)
    assert (await place.head(key)).owner is None
