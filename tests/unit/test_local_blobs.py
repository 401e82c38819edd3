"""What is particular to blobs in a folder: layout, syncs, and a disk that refuses."""

import errno
import os
import pathlib
import subprocess
import tracemalloc
from collections.abc import Iterator

import pytest

from torpor import errors
from torpor.storage import disk_files, local_blobs


@pytest.fixture
def store(tmp_path: pathlib.Path) -> local_blobs.LocalBlobStore:
    """Return a store in `tmp_path/storage`."""
    return local_blobs.LocalBlobStore(tmp_path / "storage")


@pytest.fixture
def small_disk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """Return a folder on a disk of 256 KiB, or where it cannot be mounted one that behaves so."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", os.fspath(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        write, left = os.write, 256 << 10

        def refusing(fd: int, data: bytes) -> int:
            nonlocal left
            left -= len(data)
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(fd, data)

        monkeypatch.setattr(os, "write", refusing)
        yield folder
    else:
        yield folder
        subprocess.run(["umount", os.fspath(folder)], check=True)


def _put(store: local_blobs.LocalBlobStore, *items: bytes | pathlib.Path) -> None:
    with store.upload("acme") as upload:
        for item in items:
            if isinstance(item, bytes):
                upload.put(item)
            else:
                upload.put_file(item)


def _files(root: pathlib.Path) -> list[str]:
    return sorted(os.fspath(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_blob_is_a_file_named_by_its_digest(
    store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """The layout is a contract with gc and with people; nothing else is left behind."""
    with store.upload("acme") as upload:
        digest = upload.put(b"hello")
    assert _files(tmp_path / "storage") == [f"acme/blobs/{digest[3:5]}/{digest}"]


def test_nothing_can_be_seen_before_it_is_durable(
    store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is synced before it gets its name, and each folder once, after that."""
    done: list[tuple[str, str]] = []
    fsync, link = os.fsync, os.link

    def synced(fd: int) -> None:
        fsync(fd)
        done.append(("sync", os.fspath(pathlib.Path(f"/proc/self/fd/{fd}").readlink())))

    def linked(source: pathlib.Path, target: pathlib.Path) -> None:
        assert ("sync", os.fspath(source)) in done
        done.append(("link", os.fspath(target)))
        link(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    with store.upload("acme") as upload:
        for number in range(40):
            upload.put(b"%d" % number)
        assert not done
    assert [what for what, _ in done].count("link") == 40
    last = max(place for place, (what, _) in enumerate(done) if what == "link")
    folders = {os.fspath(path.parent) for path in (tmp_path / "storage").rglob("b3-*")}
    # Also the folder that the storage itself was made in.
    above = {os.fspath(tmp_path / path) for path in ("", "storage", "storage/acme")}
    above.add(os.fspath(tmp_path / "storage/acme/blobs"))
    assert sorted(path for _, path in done[last + 1 :]) == sorted(folders | above)


def test_what_is_known_to_be_durable_is_bounded(
    store: local_blobs.LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that serves many tenants forgets folders, and goes on."""
    monkeypatch.setattr(local_blobs, "DURABLE_MAX", 4)
    for tenant in ("acme", "globex", "initech"):
        with store.upload(tenant) as upload:
            digest = upload.put(b"hello")
        assert store.exists(tenant, digest)
        # One upload of a new tenant touches the root and three folders below it.
        assert len(store._durable) <= 4 + 1


def test_a_blob_that_is_there_is_touched(
    store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """An upload that finds its blob writes nothing but renews its age, which keeps gc away."""
    with store.upload("acme") as upload:
        digest = upload.put(b"hello")
    path = tmp_path / "storage" / "acme" / "blobs" / digest[3:5] / digest
    os.utime(path, (1_000, 1_000))
    before = path.stat()
    with store.upload("acme") as upload:
        upload.put(b"hello")
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime > before.st_mtime


@pytest.mark.parametrize("size", [200, 3 << 20])
def test_a_full_disk_is_storage_full(
    small_disk: pathlib.Path, tmp_path: pathlib.Path, size: int
) -> None:
    """Small blobs and large ones that do not fit are refused as such, and leave nothing."""
    store = local_blobs.LocalBlobStore(small_disk)
    (tmp_path / "file").write_bytes(os.urandom(size))
    with pytest.raises(errors.StorageFull):
        _put(store, tmp_path / "file", *(os.urandom(4_000) for _ in range(200)))
    assert _files(small_disk) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EDQUOT, errors.StorageFull),
        (errno.EIO, errors.StorageUnavailable),
        (errno.ESTALE, errors.StorageUnavailable),
    ],
)
def test_a_sync_that_fails_promises_nothing(
    store: local_blobs.LocalBlobStore,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[errors.TorporError],
) -> None:
    """An error that only shows when syncing is an error of the upload."""

    def failing(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(kind):
        _put(store, b"one", b"two")
    assert _files(tmp_path / "storage") == []


def test_large_files_take_little_memory_and_stay_sparse(
    store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """A sparse file of 64 MiB is copied in a few MiB of memory and of disk."""
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.write(b"begin")
        file.truncate(64 << 20)
    tracemalloc.start()
    with store.upload("acme") as upload:
        digest, size = upload.put_file(source)
    assert sum(len(piece) for piece in store.chunks("acme", digest)) == size == 64 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    path = tmp_path / "storage" / "acme" / "blobs" / digest[3:5] / digest
    assert path.stat().st_blocks * 512 < 8 << 20


def test_a_blob_of_another_node_is_not_taken_for_missing(
    store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS client that remembers a name as absent is made to look again, from the top down."""
    with store.upload("acme") as upload:
        digest = upload.put(b"data")
    read, listed = disk_files.read_pieces, list[str]()

    def forgetful(path: pathlib.Path) -> Iterator[bytes]:
        if len(listed) < 3:
            raise FileNotFoundError(errno.ENOENT, "remembered", os.fspath(path))
        yield from read(path)

    monkeypatch.setattr(disk_files, "read_pieces", forgetful)
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(os.fspath(folder)))
    assert store.get("acme", digest, bytes_max=4) == b"data"
    tenant = tmp_path / "storage" / "acme"
    assert listed == [
        os.fspath(each) for each in (tenant, tenant / "blobs", tenant / "blobs" / digest[3:5])
    ]
