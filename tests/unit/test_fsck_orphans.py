"""What nobody needs: found, moved, put back when somebody needs it after all, and deleted last."""

import os
import pathlib

import pytest

from torpor import errors
from torpor.storage import (
    findings,
    fsck,
    keys,
    manifest,
    quarantine,
    records,
)
from torpor.testing import store_samples
from torpor.testing.stored_world import StoredWorld

What = findings.What


@pytest.fixture
async def world(empty_world: StoredWorld) -> StoredWorld:
    """A deployment with one session."""
    await empty_world.session("write a one")
    return empty_world


def _put(world: StoredWorld, data: bytes, *, days: int = 30) -> pathlib.Path:
    """Store a blob that was touched long ago; returns where it lies."""
    with world.blob_store.upload("acme") as upload:
        path = world.blob(upload.put(data))
    world.age(path, days=days)
    return path


def _aside(world: StoredWorld, path: pathlib.Path) -> pathlib.Path:
    return quarantine.blob_path(world.storage / "acme" / "quarantine" / "orphans", path.name)


def _ledger(world: StoredWorld) -> pathlib.Path:
    return world.storage / "acme" / "quarantine" / "owners"


async def test_orphans_are_moved_and_deleted_by_a_later_run(world: StoredWorld) -> None:
    """Old orphans are told, moved, and deleted after the grace time; young ones stay."""
    old, young = _put(world, b"old"), _put(world, b"young", days=1)
    (found,) = await world.check()
    assert (found.what, found.count, found.size_bytes) == (What.ORPHAN_BLOB, 1, 3)
    assert (found.remains, found.repaired, old.exists()) == (False, False, True)
    assert (world.summary.young.count, world.summary.young.size_bytes) == (1, 5)
    (found,) = await world.check(repair=True)
    assert (found.repaired, old.exists(), _aside(world, old).read_bytes()) == (True, False, b"old")
    for _ in range(2):
        assert await world.check(repair=True) == []
        assert world.summary.quarantined.count == 1
    world.age(_ledger(world), days=6)
    assert await world.check(repair=True) == []
    assert _aside(world, old).exists()
    world.age(_ledger(world), days=2)
    assert await world.check() == []
    assert _aside(world, old).exists(), "only --repair deletes"
    assert await world.check(repair=True) == []
    assert (world.summary.purged.count, _aside(world, old).exists()) == (1, False)
    assert not _ledger(world).exists()
    assert young.exists()


async def test_a_reader_that_needs_an_orphan_puts_it_back(world: StoredWorld) -> None:
    """A blob in quarantine is read as any other and is in its place again; a corrupt one is not."""
    path, other = _put(world, b"needed"), _put(world, b"broken")
    await world.check(repair=True)
    store = world.blob_store
    assert store.get("acme", path.name, bytes_max=10) == b"needed"
    assert path.read_bytes() == b"needed"
    assert not _aside(world, path).exists()
    _aside(world, other).write_bytes(b"brOken")
    with pytest.raises(errors.BlobMissing):
        store.get("acme", other.name, bytes_max=10)
    await world.check(repair=True)
    assert path.exists(), "putting it back is a touch"


async def test_a_frozen_owner_may_commit_late(world: StoredWorld) -> None:
    """What an owner stored before it was frozen is kept until its commit or its end."""
    file = _put(world, b"content of a file")
    entry = manifest.Entry(
        name=b"f", kind=manifest.Kind.FILE, mode=0o600, size_bytes=17, digest=file.name
    )
    folder = _put(world, manifest.encode(manifest.Page(entries=(entry,))))
    head = await store_samples.owned(world.store, records.SessionKey("acme", "frozen"))
    assert (await world.check(repair=True))[-1].repaired
    world.age(_ledger(world))
    for _ in range(2):
        await world.check(repair=True)
        assert _aside(world, folder).exists()
        assert _aside(world, file).exists()
    epoch = await world.redis("HGET", keys.head(head.key), "e")
    await world.redis("HSET", keys.head(head.key), "e", "nonsense")
    assert "head-unreadable" in await world.names(repair=True)
    await world.redis("HSET", keys.head(head.key), "e", epoch)
    await world.store.sessions.commit(store_samples.commit(head, manifest=folder.name))
    unneeded = _put(world, b"unneeded")
    assert {found.what for found in await world.check(repair=True)} == {
        What.OWNER_LAPSED,
        What.ORPHAN_BLOB,
    }
    assert folder.exists()
    assert file.exists()
    assert _aside(world, unneeded).exists()
    await world.store.sessions.vacate(head.key, epoch=1, incarnation="inc-1")
    world.age(_ledger(world))
    assert await world.check(repair=True) == []
    assert (world.summary.purged.count, _aside(world, unneeded).exists()) == (1, False)


@pytest.mark.parametrize("when", ["before", "between"])
async def test_an_upload_keeps_what_it_finds(
    world: StoredWorld, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A blob that an upload touches, even in the moment before it is moved, stays in its place."""
    path = _put(world, b"found")
    rename = pathlib.Path.rename

    def touched(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
        os.utime(source)
        return rename(source, target)

    if when == "before":
        with world.blob_store.upload("acme") as upload:
            upload.put(b"found")
    else:
        monkeypatch.setattr(pathlib.Path, "rename", touched)
    await world.check(repair=True)
    assert path.read_bytes() == b"found"
    assert not _aside(world, path).exists()


async def test_broken_uploads_are_deleted_once_they_are_old(world: StoredWorld) -> None:
    """Hidden files are told with their bytes, young ones and other people's files left alone."""
    folder = world.storage / "acme" / "blobs"
    old, young, foreign = folder / ".tmp-old", folder / "00" / ".tmp-young", folder / "README"
    young.parent.mkdir(exist_ok=True)
    for path in (old, young, foreign):
        path.write_bytes(b"half")
    world.age(old)
    world.age(foreign)
    for repair in (False, True):
        (found,) = await world.check(repair=repair)
        assert (found.what, found.size_bytes, found.where) == (What.UPLOAD_LEFTOVER, 4, str(old))
        assert (found.repaired, old.exists()) == (repair, not repair)
    assert await world.check() == []
    assert young.exists()
    assert foreign.exists()


async def test_with_any_doubt_nothing_is_moved(world: StoredWorld) -> None:
    """A session that is not whole may name anything, and so may those of another store."""
    path = _put(world, b"orphan")
    damaged = await world.session("write b two")
    world.blob(damaged.manifest).unlink()
    names = await world.names(repair=True, grace_s=0.0)
    assert names == ["blob-missing", "orphans-unjudged"]
    assert path.exists()
    marker = world.blob_store.marker()
    await world.redis("FLUSHALL")
    await world.store.catalog.create_tenant("acme", at_ms=0)
    await world.store.catalog.storage(marker)
    assert await world.names(repair=True, grace_s=0.0) == ["orphans-unjudged"]
    assert path.exists()
    await world.redis("SET", keys.STORAGE, "another")
    with pytest.raises(errors.StorageUnavailable, match="not the shared storage"):
        await world.check(repair=True)


async def test_a_file_that_holds_a_manifest_hides_nothing(world: StoredWorld) -> None:
    """A workspace file with the bytes of a manifest does not pass for the folder's check."""
    head = await world.session("write sub/b two")
    text = world.blob(head.manifest).read_bytes()
    copy = await store_samples.owned(world.store, records.SessionKey("acme", "copy"))
    entry = manifest.Entry(
        name=b"f", kind=manifest.Kind.FILE, mode=0o600, size_bytes=len(text), digest=head.manifest
    )
    folder = _put(world, manifest.encode(manifest.Page(entries=(entry,))))
    await world.store.sessions.commit(store_samples.commit(copy, manifest=folder.name))
    content = world.holding(b"two")
    world.age(content)
    await world.check(repair=True)
    assert content.exists()


async def test_one_repair_at_a_time(world: StoredWorld) -> None:
    """A second run that would repair is refused, and one that only looks is not."""
    with fsck._alone(world.storage):
        with pytest.raises(errors.FailedPrecondition, match="another"):
            await world.check(repair=True)
        assert await world.check() == []
