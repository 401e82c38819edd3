"""Snapshots: what is read, what is written, and what is left alone."""

import os
import pathlib
import stat
import time

import pytest

from torpor import errors
from torpor.storage import digests, disk_files, local_blobs, manifest, snapshot, workspace_tree
from torpor.testing import workspaces

QUOTA = 1 << 30


@pytest.fixture
def store(tmp_path: pathlib.Path) -> workspaces.RecordingBlobs:
    """Return a store that notes what is read and written."""
    return workspaces.RecordingBlobs(local_blobs.LocalBlobStore(tmp_path / "storage"))


@pytest.fixture
def snapshotter(root: pathlib.Path, store: workspaces.RecordingBlobs) -> snapshot.Snapshotter:
    """Return a snapshotter of the workspace."""
    return snapshot.Snapshotter(root, store, "acme", QUOTA)


def _settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let snapshots be taken a second after the files were written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 1_000_000_000)


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
    first = workspaces.commit(snapshotter)
    assert first.changed_total == len(first.changed) == first.entries == 6
    store.forget()
    (root / "a" / "b" / "one").write_text("changed")
    second = workspaces.commit(snapshotter)
    assert store.files == {"one": digests.of(b"changed")}
    assert len(store.puts) == 3
    assert second.changed == ("a/b/one",)
    assert second.size_bytes == len("changed" + "a/two" + "c/three")
    (root / "c" / "three").unlink()
    (root / "c").rmdir()
    assert set(workspaces.commit(snapshotter).changed) == {"c"}


def test_nothing_is_read_when_nothing_changed(
    root: pathlib.Path,
    snapshotter: snapshot.Snapshotter,
    store: workspaces.RecordingBlobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A settled workspace is compared by names and times alone."""
    workspaces.make_oddities(root)
    _settle(monkeypatch)
    first = workspaces.commit(snapshotter)
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
    first = workspaces.commit(snapshotter)
    assert first.changed_total == 2_000
    assert len(first.changed) == snapshot.NAMED_PATHS_MAX
    store.forget()
    (root / "file-777").write_bytes(b"x")
    assert workspaces.commit(snapshotter).changed == ("file-777",)
    assert len(store.puts) == 2


def test_a_change_within_the_same_tick_is_seen(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may change after it was read without a change of its times, if it is fresh."""
    tick = 1_000_000_000_000

    def coarse(status: os.stat_result) -> workspace_tree.Stamp:
        return (tick, tick, status.st_size, status.st_ino, status.st_mode, status.st_nlink)

    monkeypatch.setattr(workspace_tree, "stamp_of", coarse)
    monkeypatch.setattr(time, "time_ns", lambda: tick + 1_000_000)
    (root / "file").write_bytes(b"one")
    workspaces.commit(snapshotter)
    (root / "file").write_bytes(b"two")
    taken = workspaces.commit(snapshotter)
    assert taken.changed == ("file",)
    assert taken.tree.entries["file"].digest == digests.of(b"two")


def test_a_fresh_file_that_did_not_change_is_not_written(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, store: workspaces.RecordingBlobs
) -> None:
    """It is read again, found to be the same, and left at that."""
    (root / "file").write_bytes(b"one")
    first = workspaces.commit(snapshotter)
    store.forget()
    (root / "file").chmod(0o600)
    second = workspaces.commit(snapshotter)
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
    workspaces.commit(snapshotter)
    store.forget()
    (root / "large").write_bytes(b"x" * 61)
    with pytest.raises(errors.WorkspaceQuotaExceeded) as raised:
        snapshotter.snapshot()
    assert (raised.value.ids["size_bytes"], raised.value.ids["quota_bytes"]) == ("101", "100")
    assert (store.puts, store.files) == ([], {})
    (root / "large").write_bytes(b"x" * 60)
    assert workspaces.commit(snapshotter).size_bytes == 100
    (root / "folder" / "small").unlink()
    (root / "large").write_bytes(b"x" * 100)
    assert workspaces.commit(snapshotter).size_bytes == 100


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


class _FailingUpload(workspaces.RecordingUpload):
    """An upload whose blobs do not become durable."""

    def __exit__(self, *_: object) -> None:
        full = errors.StorageFull()
        super().__exit__(errors.StorageFull, full, None)
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
    monkeypatch.setattr(store, "upload", lambda tenant: _FailingUpload(store, upload(tenant)))
    with pytest.raises(errors.StorageFull):
        snapshotter.snapshot()
    monkeypatch.undo()
    taken = snapshotter.snapshot()
    assert taken.changed == ("file",)
    assert store.exists("acme", taken.manifest)
    assert store.exists("acme", digests.of(b"data"))


def test_what_no_commit_named_is_stored_again(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter, store: workspaces.RecordingBlobs
) -> None:
    """A snapshot whose commit did not take place is no base for the next one."""
    (root / "file").write_bytes(b"data")
    snapshotter.snapshot()
    store.forget()
    snapshotter.snapshot()
    assert store.files == {"file": digests.of(b"data")}
    assert len(store.puts) == 1


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
        taken = workspaces.commit(snapshotter)
        assert taken.tree.entries["name"].kind is manifest.Kind[kind.upper()]
        assert taken.size_bytes == {"file": 7, "link": 0, "folder": 9}[kind]


def test_folders_keep_permissions_and_an_absent_workspace_is_an_error(
    root: pathlib.Path, snapshotter: snapshot.Snapshotter
) -> None:
    """A folder's own permissions are a change; without a workspace there is no snapshot."""
    (root / "folder").mkdir(mode=0o755)
    workspaces.commit(snapshotter)
    (root / "folder").chmod(0o700)
    taken = workspaces.commit(snapshotter)
    assert taken.changed == ("folder",)
    assert taken.tree.entries["folder"].mode == stat.S_IMODE((root / "folder").stat().st_mode)
    (root / "folder").rmdir()
    root.rmdir()
    with pytest.raises(errors.StorageUnavailable):
        snapshotter.snapshot()
