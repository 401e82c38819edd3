"""The shared storage is told from an empty folder in its place."""

import asyncio
import concurrent.futures
import pathlib

import pytest

from torpor import errors
from torpor.storage import local_blobs, memory_store, storage_marker, storage_proof


@pytest.fixture
def store() -> memory_store.MemoryStore:
    """Return a store that knows no storage."""
    return memory_store.MemoryStore()


@pytest.fixture
def blobs(tmp_path: pathlib.Path) -> local_blobs.LocalBlobStore:
    """Return a storage whose folder is not there yet."""
    return local_blobs.LocalBlobStore(tmp_path / "storage")


async def test_first_start(
    store: memory_store.MemoryStore, blobs: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """The folder is made and marked, and later starts find it so."""
    for _ in range(2):
        await storage_proof.establish(store.catalog, blobs)
        await storage_proof.prove(store.catalog, blobs)
    assert [path.name for path in (tmp_path / "storage").iterdir()] == [storage_marker.NAME]


async def test_deployment_that_has_no_marker_yet(
    store: memory_store.MemoryStore, blobs: local_blobs.LocalBlobStore
) -> None:
    """What an earlier version wrote is marked as it is."""
    with blobs.upload("acme") as upload:
        digest = upload.put(b"old")
    await storage_proof.establish(store.catalog, blobs)
    await storage_proof.prove(store.catalog, blobs)
    assert blobs.get("acme", digest, bytes_max=3) == b"old"


async def test_store_that_was_emptied(
    store: memory_store.MemoryStore, blobs: local_blobs.LocalBlobStore
) -> None:
    """A new store takes the id that the storage has."""
    await storage_proof.establish(store.catalog, blobs)
    before = blobs.marker()
    await storage_proof.establish(memory_store.MemoryStore().catalog, blobs)
    assert blobs.marker() == before


async def test_two_nodes_at_once(
    store: memory_store.MemoryStore, blobs: local_blobs.LocalBlobStore
) -> None:
    """All of them take the first one's id."""
    await asyncio.gather(*(storage_proof.establish(store.catalog, blobs) for _ in range(8)))
    assert await store.catalog.storage() == blobs.marker()


def test_one_marker_stays(tmp_path: pathlib.Path) -> None:
    """Of many that write it at once the first one's stays, and nothing else is left."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = set(pool.map(storage_marker.write, [tmp_path / "new"] * 32))
    assert found == {storage_marker.read(tmp_path / "new")}
    assert [path.name for path in (tmp_path / "new").iterdir()] == [storage_marker.NAME]


async def test_nothing_is_mounted(
    store: memory_store.MemoryStore, blobs: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """A node whose folder is another one does not start, and leaves it as it is."""
    await storage_proof.establish(store.catalog, blobs)
    (tmp_path / "mountpoint").mkdir()
    here = local_blobs.LocalBlobStore(tmp_path / "mountpoint")
    for prove in (storage_proof.establish, storage_proof.prove):
        with pytest.raises(errors.StorageUnavailable, match=blobs.marker()):
            await prove(store.catalog, here)
    assert list((tmp_path / "mountpoint").iterdir()) == []


async def test_the_remedy_works(
    store: memory_store.MemoryStore, blobs: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """A storage that lost its marker is known again by the id that the error names."""
    await storage_proof.establish(store.catalog, blobs)
    known, marker = blobs.marker(), tmp_path / "storage" / storage_marker.NAME
    marker.unlink()
    with pytest.raises(errors.StorageUnavailable, match=known):
        await storage_proof.prove(store.catalog, blobs)
    marker.write_text(known + "\n")
    await storage_proof.prove(store.catalog, blobs)


def test_folder_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    """What is no folder is no storage, rather than one without a marker."""
    (tmp_path / "file").write_text("")
    here = local_blobs.LocalBlobStore(tmp_path / "file")
    with pytest.raises(errors.StorageUnavailable):
        here.marker()
    with pytest.raises(errors.StorageUnavailable):
        here.mark()
