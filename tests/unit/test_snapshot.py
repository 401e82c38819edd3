"""Snapshots: what is read, what is written, and what is left alone."""

import os
import pathlib
import socket
import stat
import time
from collections.abc import Iterator
from types import TracebackType

import blake3
import pytest

from torpor import errors
from torpor.storage import (
    blobs,
    disk_files,
    local_blobs,
    manifest,
    snapshot,
    workspace_scan,
    workspace_tree,
)
from torpor.testing import workspaces

QUOTA = 1 << 30


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return an empty workspace."""
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


@pytest.fixture
def store(tmp_path: pathlib.Path) -> workspaces.RecordingBlobs:
    """Return a store that notes what is read and written."""
    return workspaces.RecordingBlobs(local_blobs.LocalBlobStore(tmp_path / "storage"))


@pytest.fixture
def snapshotter(root: pathlib.Path, store: workspaces.RecordingBlobs) -> snapshot.Snapshotter:
    """Return a snapshotter of the workspace."""
    return snapshot.Snapshotter(root, store, "acme", QUOTA)


def _commit(snapshotter: snapshot.Snapshotter) -> snapshot.Snapshot:
    taken = snapshotter.snapshot()
    snapshotter.adopt(taken.tree)
    return taken


def _settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let snapshots be taken a second after the files were written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 1_000_000_000)


def _digest(data: bytes) -> str:
    return f"b3-{blake3.blake3(data).hexdigest()}"


def test_an_empty_workspace_has_no_manifest(
    snapshotter: snapshot.Snapshotter, store: workspaces.RecordingBlobs
) -> None:
    """Nothing is stored for nothing."""
    taken = snapshotter.snapshot()
    assert (taken.manifest, taken.entries, taken.size_bytes, taken.changed) == ("", 0, 0, ())
    assert not store.puts


def test_the_same_files_give_the_same_digest(
    tmp_path: pathlib.Path, store: workspaces.RecordingBlobs
) -> None:
    """The order in which files were made, and their times, do not show."""
    digests = set()
    for order in (("a", "b", "c"), ("c", "a", "b")):
        root = tmp_path / "-".join(order)
        root.mkdir()
        for name in order:
            (root / name).mkdir()
            (root / name / "file").write_text(name)
        digests.add(snapshot.Snapshotter(root, store, "acme", QUOTA).snapshot().manifest)
    assert len(digests) == 1


def test_only_what_changed_is_written(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, store: workspaces.RecordingBlobs
) -> None:
    """One changed file costs itself and the manifests of the folders above it."""
    for path in ("a/b/one", "a/two", "c/three"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    first = _commit(snapshotter)
    assert first.changed_total == len(first.changed) == first.entries == 6
    store.forget()
    (root / "a" / "b" / "one").write_text("changed")
    second = _commit(snapshotter)
    assert store.files == {"one": _digest(b"changed")}
    assert len(store.puts) == 3
    assert second.changed == ("a/b/one",)
    assert second.size_bytes == len("changed" + "a/two" + "c/three")
    (root / "c" / "three").unlink()
    (root / "c").rmdir()
    assert set(_commit(snapshotter).changed) == {"c"}


def test_nothing_is_read_when_nothing_changed(
    root: pathlib.Path,
    snapshotter: snapshot.Snapshotter,
    store: workspaces.RecordingBlobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A settled workspace is compared by names and times alone."""
    workspaces.make_oddities(root)
    _settle(monkeypatch)
    first = _commit(snapshotter)
    store.forget()
    monkeypatch.setattr(disk_files, "read_pieces", None)
    second = snapshotter.snapshot()
    assert second.tree is first.tree
    assert second.manifest == first.manifest
    assert (store.puts, store.files) == ([], {})


def test_one_change_in_a_large_folder_writes_one_page(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, store: workspaces.RecordingBlobs
) -> None:
    """Besides the file: one page and the index."""
    for number in range(2_000):
        (root / f"file-{number}").touch()
    first = _commit(snapshotter)
    assert first.changed_total == 2_000
    assert len(first.changed) == snapshot.NAMED_PATHS_MAX
    store.forget()
    (root / "file-777").write_bytes(b"x")
    assert _commit(snapshotter).changed == ("file-777",)
    assert len(store.puts) == 2


def test_a_change_within_the_same_tick_is_seen(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may change after it was read without a change of its times, if it is fresh."""
    tick = 1_000_000_000_000

    def coarse(status: os.stat_result) -> workspace_tree.Stamp:
        return (tick, tick, status.st_size, status.st_ino, status.st_mode)

    monkeypatch.setattr(workspace_tree, "stamp_of", coarse)
    monkeypatch.setattr(time, "time_ns", lambda: tick + 1_000_000)
    (root / "file").write_bytes(b"one")
    _commit(snapshotter)
    (root / "file").write_bytes(b"two")
    taken = _commit(snapshotter)
    assert taken.changed == ("file",)
    assert taken.tree.entries["file"].digest == _digest(b"two")


def test_a_fresh_file_that_did_not_change_is_not_written(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, store: workspaces.RecordingBlobs
) -> None:
    """It is read again, found to be the same, and left at that."""
    (root / "file").write_bytes(b"one")
    first = _commit(snapshotter)
    store.forget()
    (root / "file").chmod(0o600)
    second = _commit(snapshotter)
    assert store.files == {}
    assert second.changed == ("file",)
    assert second.manifest != first.manifest


def test_setuid_and_sticky_bits_are_not_kept(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter
) -> None:
    """Permissions are kept, powers are not."""
    (root / "file").touch()
    (root / "file").chmod(0o6755)
    (root / "folder").mkdir()
    (root / "folder").chmod(0o1777)
    entries = snapshotter.snapshot().tree.entries
    assert (entries["file"].mode, entries["folder"].mode) == (0o755, 0o777)


def test_the_quota_is_checked_before_anything_is_written(
    root: pathlib.Path, store: workspaces.RecordingBlobs
) -> None:
    """Too much is refused with both sizes; the store is not touched. Just enough is fine."""
    snapshotter = snapshot.Snapshotter(root, store, "acme", 100)
    (root / "folder").mkdir()
    (root / "folder" / "small").write_bytes(b"x" * 40)
    _commit(snapshotter)
    store.forget()
    (root / "large").write_bytes(b"x" * 61)
    with pytest.raises(errors.WorkspaceQuotaExceeded) as raised:
        snapshotter.snapshot()
    assert (raised.value.ids["size_bytes"], raised.value.ids["quota_bytes"]) == ("101", "100")
    assert (store.puts, store.files) == ([], {})
    (root / "large").write_bytes(b"x" * 60)
    assert _commit(snapshotter).size_bytes == 100
    (root / "folder" / "small").unlink()
    (root / "large").write_bytes(b"x" * 100)
    assert _commit(snapshotter).size_bytes == 100


def test_too_many_and_too_deep_are_refused(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be restored is not stored."""
    deep = root.joinpath(*("d",) * manifest.DEPTH_MAX)
    deep.mkdir(parents=True)
    assert snapshotter.snapshot().entries == manifest.DEPTH_MAX
    (deep / "d").mkdir()
    with pytest.raises(errors.WorkspaceQuotaExceeded, match="deep"):
        snapshotter.snapshot()
    monkeypatch.setattr(manifest, "ENTRIES_MAX", 10)
    with pytest.raises(errors.WorkspaceQuotaExceeded, match="more than 10"):
        snapshotter.snapshot()


class _FailingUpload:
    """An upload whose blobs do not become durable."""

    def __init__(self, upload: blobs.Upload) -> None:
        self._upload = upload
        self.put = upload.put
        self.put_file = upload.put_file

    def __enter__(self) -> "_FailingUpload":
        self._upload.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        full = errors.StorageFull()
        self._upload.__exit__(errors.StorageFull, full, None)
        raise full


def test_after_a_failed_upload_the_next_one_stores_all(
    root: pathlib.Path,
    snapshotter: snapshot.Snapshotter,
    store: workspaces.RecordingBlobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is taken for stored that is not."""
    (root / "file").write_bytes(b"data")
    upload = store.upload
    monkeypatch.setattr(store, "upload", lambda tenant: _FailingUpload(upload(tenant)))
    with pytest.raises(errors.StorageFull):
        snapshotter.snapshot()
    monkeypatch.setattr(store, "upload", upload)
    taken = snapshotter.snapshot()
    assert taken.changed == ("file",)
    assert store.exists("acme", taken.manifest)
    assert store.exists("acme", _digest(b"data"))


def test_what_no_commit_named_is_stored_again(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, store: workspaces.RecordingBlobs
) -> None:
    """A snapshot whose commit did not take place is no base for the next one."""
    (root / "file").write_bytes(b"data")
    snapshotter.snapshot()
    store.forget()
    snapshotter.snapshot()
    assert store.files == {"file": _digest(b"data")}
    assert len(store.puts) == 1


def test_files_may_vanish_while_they_are_looked_at(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between name and status, and between status and content: what is gone is left out."""
    for name in "abcdef":
        (root / name).write_text(name)
    stamp_of, files = workspace_tree.stamp_of, iter("abc")

    def removing(status: os.stat_result) -> workspace_tree.Stamp:
        (root / next(files, "a")).unlink(missing_ok=True)
        return stamp_of(status)

    monkeypatch.setattr(workspace_tree, "stamp_of", removing)
    read_pieces = disk_files.read_pieces

    def removing_too(path: pathlib.Path) -> Iterator[bytes]:
        (root / "d").unlink(missing_ok=True)
        return read_pieces(path)

    monkeypatch.setattr(disk_files, "read_pieces", removing_too)
    taken = _commit(snapshotter)
    assert sorted(set(taken.tree.entries) - {"a", "b", "c"}) == ["e", "f"]
    monkeypatch.undo()
    assert sorted(_commit(snapshotter).tree.entries) == ["e", "f"]


def test_a_folder_may_turn_into_a_link_while_it_is_looked_at(
    root: pathlib.Path,
    snapshotter: snapshot.Snapshotter,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not followed out of the workspace; the next snapshot sees the link."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    (root / "folder").mkdir()
    stamps = workspace_scan._stamps

    def swapping(fd: int) -> dict[str, workspace_tree.Stamp]:
        found = stamps(fd)
        if (root / "folder").is_dir() and not (root / "folder").is_symlink():
            (root / "folder").rmdir()
            (root / "folder").symlink_to(tmp_path / "outside")
        return found

    monkeypatch.setattr(workspace_scan, "_stamps", swapping)
    assert _commit(snapshotter).tree.entries == {}
    assert _commit(snapshotter).tree.entries["folder"].kind is manifest.Kind.LINK


def test_a_file_that_grows_while_it_is_read(
    root: pathlib.Path,
    snapshotter: snapshot.Snapshotter,
    store: workspaces.RecordingBlobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was stored is what was hashed, reading ends, and the next snapshot has the rest."""
    (root / "log").write_bytes(b"x" * (3 << 20))
    read = os.read

    def growing(fd: int, count: int) -> bytes:
        with (root / "log").open("ab") as file:
            file.write(b"y" * count)
        return read(fd, count)

    monkeypatch.setattr(os, "read", growing)
    entry = _commit(snapshotter).tree.entries["log"]
    monkeypatch.undo()
    assert b"".join(store.chunks("acme", entry.digest)) == b"x" * (3 << 20)
    assert entry.size_bytes == 3 << 20
    assert _commit(snapshotter).tree.entries["log"].size_bytes == 6 << 20


def test_what_is_no_file_is_skipped_and_said(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter
) -> None:
    """Pipes and sockets do not stop a snapshot, and are named when they are new."""
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = pathlib.Path.cwd()
        os.chdir(root)
        listener.bind("socket")
        os.chdir(here)
        taken = _commit(snapshotter)
        assert sorted(taken.skipped) == ["pipe", "socket"]
        assert taken.manifest == ""
        assert taken.changed == ()


def test_a_file_that_cannot_be_read_is_named(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which one, and what to do; so it does for a folder."""
    (root / "folder").mkdir()
    (root / "folder" / "locked").write_bytes(b"x")
    opened = os.open

    def refusing(
        path: str | pathlib.Path, flags: int, *args: int, dir_fd: int | None = None
    ) -> int:
        if pathlib.Path(path).name == locked[0]:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *args, dir_fd=dir_fd)

    locked = [""]
    monkeypatch.setattr(os, "open", refusing)
    for locked[0], path in (("locked", "folder/locked"), ("folder", "folder")):
        with pytest.raises(errors.WorkspaceUnreadable, match="make it readable") as raised:
            snapshotter.snapshot()
        assert raised.value.ids["path"] == path


@pytest.mark.parametrize("kinds", [("file", "folder"), ("folder", "link"), ("link", "file")])
def test_a_name_may_become_something_else(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, kinds: tuple[str, str]
) -> None:
    """Files, folders and links take each other's names, both ways."""
    for kind in (*kinds, *kinds):
        path = root / "name"
        if path.is_dir() and not path.is_symlink():
            (path / "inside").unlink()
            path.rmdir()
        path.unlink(missing_ok=True)
        if kind == "file":
            path.write_bytes(b"content")
        elif kind == "link":
            path.symlink_to("name of nothing")
        else:
            path.mkdir()
            (path / "inside").write_bytes(b"inside it")
        taken = _commit(snapshotter)
        assert taken.tree.entries["name"].kind is manifest.Kind[kind.upper()]
        assert taken.size_bytes == {"file": 7, "link": 0, "folder": 9}[kind]


def test_folders_keep_permissions_and_an_absent_workspace_is_an_error(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter
) -> None:
    """A folder's own permissions are a change; without a workspace there is no snapshot."""
    (root / "folder").mkdir(mode=0o755)
    _commit(snapshotter)
    (root / "folder").chmod(0o700)
    taken = _commit(snapshotter)
    assert taken.changed == ("folder",)
    assert taken.tree.entries["folder"].mode == stat.S_IMODE((root / "folder").stat().st_mode)
    (root / "folder").rmdir()
    root.rmdir()
    with pytest.raises(errors.StorageUnavailable):
        snapshotter.snapshot()
