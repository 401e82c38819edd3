"""Restoring: the same files come back, or none."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torpor import errors
from torpor.storage import blobs, digests, disk_files, local_blobs, manifest, restore, snapshot
from torpor.testing import workspaces

QUOTA = 1 << 30


@pytest.fixture
def store(tmp_path: pathlib.Path) -> local_blobs.LocalBlobStore:
    """Return a store in `tmp_path/storage`."""
    return local_blobs.LocalBlobStore(tmp_path / "storage")


def _take(root: pathlib.Path, store: blobs.BlobStore) -> snapshot.Snapshot:
    return snapshot.Snapshotter(root, store, "acme", QUOTA).snapshot()


def _names_in(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _blob(tmp_path: pathlib.Path, digest: str) -> pathlib.Path:
    return tmp_path / "storage" / "acme" / "blobs" / digest[3:5] / digest


@pytest.mark.parametrize("empty_folder", [False, True])
def test_everything_odd_comes_back(
    root: pathlib.Path,
    store: local_blobs.LocalBlobStore,
    tmp_path: pathlib.Path,
    empty_folder: bool,
) -> None:
    """Names, links, permissions, empty things and depth are as they were; nothing else is left."""
    workspaces.make_oddities(root)
    taken = _take(root, store)
    (tmp_path / "new").mkdir()
    if empty_folder:
        (tmp_path / "new" / "workspace").mkdir()
    restore.restore(taken.manifest, tmp_path / "new" / "workspace", store, "acme")
    assert workspaces.describe(tmp_path / "new" / "workspace") == workspaces.describe(root)
    assert _names_in(tmp_path / "new") == ["workspace"]
    assert _take(tmp_path / "new" / "workspace", store).manifest == taken.manifest


def test_an_empty_workspace_is_an_empty_folder(
    store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """No manifest, no files; the folder is the session's alone."""
    tree = restore.restore("", tmp_path / "new", store, "acme")
    assert workspaces.describe(tmp_path / "new") == {}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert tree.digest == ""


def test_after_a_restore_nothing_is_read_again(
    root: pathlib.Path,
    store: local_blobs.LocalBlobStore,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tree that comes with a restore is the base of the next snapshot."""
    workspaces.make_oddities(root)
    taken = _take(root, store)
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 1_000_000_000)
    tree = restore.restore(taken.manifest, tmp_path / "new", store, "acme")
    notes = workspaces.RecordingBlobs(store)
    snapshotter = snapshot.Snapshotter(tmp_path / "new", notes, "acme", QUOTA)
    snapshotter.adopt(tree)
    monkeypatch.setattr(disk_files, "read_pieces", None)
    again = snapshotter.snapshot()
    assert again.tree is tree
    assert again.manifest == taken.manifest
    assert again.size_bytes == taken.size_bytes


def test_large_files_stay_sparse(
    root: pathlib.Path, store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """Zeros that took no room take none."""
    with (root / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(20 << 20)
        file.write(b"middle")
    restore.restore(_take(root, store).manifest, tmp_path / "new", store, "acme")
    restored = (tmp_path / "new" / "sparse").stat()
    assert restored.st_size == 64 << 20
    assert restored.st_blocks * 512 < 8 << 20
    assert workspaces.describe(tmp_path / "new") == workspaces.describe(root)


@pytest.mark.parametrize("damage", ["gone", "torn", "flipped"])
@pytest.mark.parametrize("kind", [manifest.Kind.FILE, manifest.Kind.FOLDER])
def test_damage_names_the_path_and_leaves_nothing(
    root: pathlib.Path,
    store: local_blobs.LocalBlobStore,
    tmp_path: pathlib.Path,
    damage: str,
    kind: manifest.Kind,
) -> None:
    """A workspace with one bad blob is not restored at all, and the error says which file it is."""
    (root / "folder").mkdir()
    (root / "folder" / "file").write_bytes(b"content")
    (root / "fine").write_bytes(b"fine")
    taken = _take(root, store)
    entry = taken.tree.entries["folder"]
    if kind is manifest.Kind.FILE:
        entry = taken.tree.folders["folder"].entries["file"]
    blob = _blob(tmp_path, entry.digest)
    data = blob.read_bytes()
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes(data[:-1] if damage == "torn" else data[:-1] + bytes([data[-1] ^ 1]))
    kind_of_error = errors.BlobMissing if damage == "gone" else errors.BlobCorrupt
    with pytest.raises(kind_of_error) as raised:
        restore.restore(taken.manifest, tmp_path / "new", store, "acme")
    assert raised.value.ids["path"].startswith("folder/")
    assert raised.value.ids["path"].endswith("file") == (kind is manifest.Kind.FILE)
    assert _names_in(tmp_path) == ["storage", "workspace"]


def test_a_size_that_lies_is_corrupt(
    root: pathlib.Path, store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """A manifest cannot make a restore write more, or less, than it says."""
    (root / "file").write_bytes(b"content")
    entry = _take(root, store).tree.entries["file"]
    for size in (6, 8):
        lying = msgspec.structs.replace(entry, size_bytes=size)
        with store.upload("acme") as upload:
            digest = upload.put(manifest.encode(manifest.Page(entries=(lying,))))
        with pytest.raises(errors.BlobCorrupt, match="size"):
            restore.restore(digest, tmp_path / "new", store, "acme")


def test_a_hostile_manifest_writes_nowhere(
    store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """Names that climb are refused; a link that leads out is made, and nothing goes through it."""
    (tmp_path / "outside").mkdir()
    with store.upload("acme") as upload:
        content = upload.put(b"evil")
        file = manifest.Entry(
            name=b"x", kind=manifest.Kind.FILE, mode=0o644, size_bytes=4, digest=content
        )
        out = manifest.Entry(
            name=b"out",
            kind=manifest.Kind.LINK,
            mode=0o777,
            size_bytes=0,
            target=os.fsencode(tmp_path / "outside"),
        )
        bad = [
            msgspec.structs.replace(file, name=name)
            for name in (
                b"../outside/evil",
                b"out/evil",
                os.fsencode(tmp_path / "outside" / "evil"),
            )
        ]
        digests = [upload.put(manifest.encode(manifest.Page(entries=(entry,)))) for entry in bad]
        twice = msgspec.structs.replace(
            out, kind=manifest.Kind.FOLDER, target=b"", digest=digests[0]
        )
        digests.append(upload.put(manifest.encode(manifest.Page(entries=(out, twice)))))
        fine = upload.put(manifest.encode(manifest.Page(entries=(out, file))))
    for digest in digests:
        with pytest.raises(errors.BlobCorrupt):
            restore.restore(digest, tmp_path / "new", store, "acme")
    restore.restore(fine, tmp_path / "new", store, "acme")
    assert _names_in(tmp_path / "outside") == []


def test_a_manifest_that_multiplies_is_refused(
    store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few blobs can describe a huge tree, or an endless one: both end at the bounds."""
    monkeypatch.setattr(manifest, "ENTRIES_MAX", 5_000)

    def stacked(names: tuple[bytes, ...], levels: int) -> str:
        digest = ""
        with store.upload("acme") as upload:
            for _ in range(levels):
                entries = tuple(
                    manifest.Entry(
                        name=name,
                        kind=manifest.Kind.FOLDER,
                        mode=0o755,
                        size_bytes=0,
                        digest=digest,
                    )
                    for name in names
                )
                digest = upload.put(manifest.encode(manifest.Page(entries=entries)))
        return digest

    many, deep = tuple(b"%02d" % number for number in range(50)), (b"d",)
    for digest in (stacked(many, 8), stacked(deep, manifest.DEPTH_MAX + 2)):
        with pytest.raises(errors.BlobCorrupt, match="larger"):
            restore.restore(digest, tmp_path / "new", store, "acme")
    restore.restore(stacked(deep, manifest.DEPTH_MAX), tmp_path / "new", store, "acme")


def test_a_disk_that_refuses_leaves_nothing(
    root: pathlib.Path,
    store: local_blobs.LocalBlobStore,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full node is an error that says so, and the half-made folder does not keep it full."""
    workspaces.make_oddities(root)
    taken = _take(root, store)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(errors.StorageFull):
        restore.restore(taken.manifest, tmp_path / "new", store, "acme")
    assert _names_in(tmp_path) == ["storage", "workspace"]


def test_a_folder_with_files_is_not_written_over(
    root: pathlib.Path, store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """Somebody else's files stay."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").touch()
    with pytest.raises(errors.StorageUnavailable):
        restore.restore("", tmp_path / "new", store, "acme")
    assert _names_in(tmp_path / "new") == ["mine"]


_KILLED = """
import os, pathlib, sys, threading
from torpor.storage import local_blobs, restore

class Stuck(local_blobs.LocalBlobStore):
    count = 0

    def chunks(self, tenant, digest):
        Stuck.count += 1
        if Stuck.count > 5:
            os.write(1, b"stuck\\n")  # in one piece, also when several threads get here
            threading.Event().wait()
        yield from super().chunks(tenant, digest)

storage, digest, destination = sys.argv[1:]
restore.restore(digest, pathlib.Path(destination), Stuck(pathlib.Path(storage)), "acme")
"""


def test_a_restore_that_was_killed_starts_over(
    root: pathlib.Path, store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """What a dead process left is neither taken for a workspace nor in the way of one."""
    workspaces.make_oddities(root)
    digest = _take(root, store).manifest
    destination = tmp_path / "new"
    arguments = [os.fspath(tmp_path / "storage"), digest, os.fspath(destination)]
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, *arguments], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.kill()
    assert said == b"stuck\n"
    partial = tmp_path / "new.partial"
    assert not destination.exists()
    assert workspaces.describe(partial)
    (partial / "read only").chmod(0o500)
    (partial / "left over").touch()
    restore.restore(digest, destination, store, "acme")
    assert workspaces.describe(destination) == workspaces.describe(root)
    assert not partial.exists()


# --- any tree, any edits --------------------------------------------------------------------------

_names = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe", "ü".encode(), b"a b", b"-"])
_paths = st.lists(_names, min_size=1, max_size=3).map(tuple)
_contents = st.one_of(
    st.binary(max_size=8).map(lambda data: ("file", data)),
    st.binary(min_size=1, max_size=8)
    .filter(lambda data: b"\0" not in data)
    .map(lambda data: ("link", data)),
    st.just(("folder", b"")),
    st.just(("nothing", b"")),
)
_edits = st.lists(st.tuples(_paths, _contents, st.sampled_from([0o755, 0o700, 0o644, 0o777])))


def _edit(root: pathlib.Path, names: tuple[bytes, ...], what: tuple[str, bytes], mode: int) -> None:
    """Do one edit as far as it is possible: what is in its way is removed."""
    path = root
    for name in names[:-1]:
        path /= os.fsdecode(name)
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            path.mkdir()
        path.chmod(0o755)
    path /= os.fsdecode(names[-1])
    kind, data = what
    if kind == "folder" and path.is_dir() and not path.is_symlink():
        path.chmod(mode | 0o700)
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif kind != "file" or path.is_symlink():
        path.unlink(missing_ok=True)
    if kind == "file":
        with contextlib.suppress(FileNotFoundError):
            path.chmod(0o644)
        path.write_bytes(data)
    elif kind == "link":
        path.symlink_to(os.fsdecode(data))
    elif kind == "folder":
        path.mkdir()
    if kind in ("file", "folder"):
        path.chmod(mode | (0o700 if kind == "folder" else 0o400))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_edits, min_size=1, max_size=4))
def test_any_edits_come_back_and_only_they_are_written(
    rounds: list[list[tuple[tuple[bytes, ...], tuple[str, bytes], int]]],
) -> None:
    """After any edits a snapshot restores to the same, and only what differs is written."""
    with tempfile.TemporaryDirectory() as scratch:
        base = pathlib.Path(scratch)
        root = base / "workspace"
        root.mkdir()
        store = workspaces.RecordingBlobs(local_blobs.LocalBlobStore(base / "storage"))
        snapshotter = snapshot.Snapshotter(root, store, "acme", QUOTA)
        for number, edits in enumerate(rounds):
            before = workspaces.describe(root)
            for names, what, mode in edits:
                _edit(root, names, what, mode)
            after = workspaces.describe(root)
            stored = _stored(base)
            store.forget()
            taken = snapshotter.snapshot()
            snapshotter.adopt(taken.tree)
            assert taken.entries == len(after)
            differ = {path for path in before | after if before.get(path) != after.get(path)}
            contents = {digests.of(after[path][2]) for path in differ if path in after}
            assert _stored(base) - stored <= contents | set(store.puts)
            assert set(taken.changed) <= differ
            assert all(
                path in taken.changed or any(above in taken.changed for above in _above(path))
                for path in differ
            )
            fresh = snapshot.Snapshotter(root, store, "acme", QUOTA).snapshot()
            assert fresh.manifest == taken.manifest
            assert fresh.size_bytes == taken.size_bytes
            restore.restore(taken.manifest, base / f"copy-{number}", store, "acme")
            assert workspaces.describe(base / f"copy-{number}") == after


def _stored(base: pathlib.Path) -> set[str]:
    return {path.name for path in (base / "storage").rglob("b3-*")}


def _above(path: str) -> list[str]:
    return [os.fspath(parent) for parent in pathlib.PurePath(path).parents]


def test_what_has_no_files_starts_no_thread(
    store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most sessions have none, and their wake is short."""
    monkeypatch.setattr(threading, "Thread", None)
    assert restore.restore("", tmp_path / "workspace", store, "acme").digest == ""
    assert list((tmp_path / "workspace").iterdir()) == []
