"""What a node keeps of sessions that left: used again, put right, bounded, and never another's."""

import os
import pathlib
import stat
import time
from collections.abc import Callable

import pytest

from torpor.storage import (
    kept_description,
    kept_workspaces,
    local_blobs,
    records,
    restore,
    snapshot,
    workspace_tree,
)
from torpor.testing import clock, workspaces

KEY = records.SessionKey("acme", "one")
QUOTA = 1 << 30


@pytest.fixture
def store(tmp_path: pathlib.Path) -> workspaces.RecordingBlobs:
    """Return a store that takes note of what is read."""
    return workspaces.RecordingBlobs(local_blobs.LocalBlobStore(tmp_path / "storage"))


@pytest.fixture
def time_source() -> clock.FakeClock:
    """Return the node's clock."""
    return clock.FakeClock()


@pytest.fixture
def kept(tmp_path: pathlib.Path, time_source: clock.FakeClock) -> kept_workspaces.KeptWorkspaces:
    """Return a node's kept workspaces, none so far."""
    return kept_workspaces.KeptWorkspaces(tmp_path / "kept", time_source)


@pytest.fixture(autouse=True)
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all files be old enough to be told from changed ones."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 1_000_000_000)


def _slot(tmp_path: pathlib.Path, name: str) -> pathlib.Path:
    slot = tmp_path / "slots" / name
    slot.mkdir(parents=True)
    return slot


def _leave(slot: pathlib.Path, store: workspaces.RecordingBlobs) -> snapshot.Snapshot:
    return workspaces.leave(slot, store, KEY, at_ms=clock.FakeClock().now_ms())


def _put_back(
    slot: pathlib.Path, digest: str, store: workspaces.RecordingBlobs
) -> workspace_tree.Folder | None:
    store.forget()
    return kept_workspaces.put_back(slot, KEY, digest, store)


def _assert_right(
    slot: pathlib.Path,
    digest: str,
    tree: workspace_tree.Folder | None,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
) -> None:
    """The workspace is what a full restore makes, and the next snapshot finds nothing to store."""
    root = slot / kept_workspaces.WORKSPACE
    restore.restore(digest, tmp_path / "as stored", store, "acme")
    assert workspaces.describe(root) == workspaces.describe(tmp_path / "as stored")
    assert tree is not None
    assert tree.digest == digest
    snapshotter = snapshot.Snapshotter(root, store, "acme", QUOTA)
    snapshotter.adopt(tree)
    store.forget()
    again = snapshotter.snapshot()
    assert again.manifest == digest
    assert (store.puts, store.files, again.changed) == ([], {}, ())


def test_what_was_kept_is_used_without_a_read(
    kept: kept_workspaces.KeptWorkspaces, store: workspaces.RecordingBlobs, tmp_path: pathlib.Path
) -> None:
    """A session that comes back to its node finds its files, and the storage is not asked."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    taken = _leave(old, store)
    before = workspaces.describe(old / kept_workspaces.WORKSPACE)
    assert kept.keep(old, KEY)
    assert kept.take(KEY, new)
    tree = _put_back(new, taken.manifest, store)
    assert store.reads == []
    assert workspaces.describe(new / kept_workspaces.WORKSPACE) == before
    _assert_right(new, taken.manifest, tree, store, tmp_path)
    assert not kept.take(KEY, _slot(tmp_path, "third"))


def _changed(root: pathlib.Path) -> None:
    (root / "a" / "first").write_bytes(b"FIRST")


def _touched_up(root: pathlib.Path) -> None:
    """Change a file and give it its size and its time back; its inode's time remains."""
    status = (root / "a" / "first").stat()
    (root / "a" / "first").write_bytes(b"FIRST")
    os.utime(root / "a" / "first", ns=(status.st_atime_ns, status.st_mtime_ns))


def _added(root: pathlib.Path) -> None:
    (root / "a" / "new").mkdir()
    (root / "a" / "new" / "file").write_bytes(b"new")
    os.mkfifo(root / "a" / "pipe")


def _removed(root: pathlib.Path) -> None:
    (root / "a" / "first").unlink()
    (root / "empty folder").rmdir()


def _other_mode(root: pathlib.Path) -> None:
    (root / "a" / "first").chmod(0o600)
    (root / "a").chmod(0o711)
    (root / "read only").chmod(0o700)


def _file_to_link(root: pathlib.Path) -> None:
    (root / "a" / "first").unlink()
    (root / "a" / "first").symlink_to("/etc/passwd")


def _folder_to_link(root: pathlib.Path) -> None:
    (root / "a").rename(root.parent / "elsewhere")
    (root / "a").symlink_to(root.parent / "elsewhere")


def _file_to_folder(root: pathlib.Path) -> None:
    (root / "a" / "first").unlink()
    (root / "a" / "first").mkdir()
    (root / "a" / "first" / "inside").write_bytes(b"in")


def _folder_to_file(root: pathlib.Path) -> None:
    (root / "empty folder").rmdir()
    (root / "empty folder").write_bytes(b"")


def _link_elsewhere(root: pathlib.Path) -> None:
    (root / "dangling").unlink()
    (root / "dangling").symlink_to("/etc/passwd")


def _inside_what_is_read_only(root: pathlib.Path) -> None:
    (root / "read only").chmod(0o755)
    (root / "read only" / "inside").unlink()
    (root / "read only").chmod(0o555)


@pytest.mark.parametrize(
    "meddle",
    [
        _changed,
        _touched_up,
        _added,
        _removed,
        _other_mode,
        _file_to_link,
        _folder_to_link,
        _file_to_folder,
        _folder_to_file,
        _link_elsewhere,
        _inside_what_is_read_only,
    ],
)
def test_what_changed_meanwhile_is_put_right(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    meddle: Callable[[pathlib.Path], None],
) -> None:
    """Whatever happened to a kept tree, the session finds what is stored; little is read for it."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    taken = _leave(old, store)
    kept.keep(old, KEY)
    kept.take(KEY, new)
    meddle(new / kept_workspaces.KEPT / kept_workspaces.WORKSPACE)
    tree = _put_back(new, taken.manifest, store)
    # At most a folder's manifest and what is in it.
    assert len(store.reads) <= 3
    _assert_right(new, taken.manifest, tree, store, tmp_path)


def test_only_what_differs_is_fetched_after_a_life_elsewhere(
    kept: kept_workspaces.KeptWorkspaces, store: workspaces.RecordingBlobs, tmp_path: pathlib.Path
) -> None:
    """Of a session that moved on on another node its changes are read: manifests and new files."""
    old, new, elsewhere = (_slot(tmp_path, name) for name in ("old", "new", "elsewhere"))
    taken = _leave(old, store)
    kept.keep(old, KEY)
    root = elsewhere / kept_workspaces.WORKSPACE
    snapshotter = snapshot.Snapshotter(root, store, "acme", QUOTA)
    snapshotter.adopt(restore.restore(taken.manifest, root, store, "acme"))
    (root / "a" / "first").write_bytes(b"moved on")
    (root / "a" / "second").unlink()
    (root / "a" / "third").write_bytes(b"third")
    (root / "run.sh").chmod(0o700)
    (root / "empty folder").chmod(0o711)
    moved = snapshotter.snapshot()
    kept.take(KEY, new)
    tree = _put_back(new, moved.manifest, store)
    # The manifests of the root and of `a`; `first`, `third` and `run.sh`.
    assert len(store.reads) == 5
    _assert_right(new, moved.manifest, tree, store, tmp_path)


def test_a_file_too_fresh_to_tell_is_read_again(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was written just before the last snapshot may have changed without a trace."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    taken = _leave(old, store)
    monkeypatch.undo()
    kept.keep(old, KEY)
    kept.take(KEY, new)
    (new / kept_workspaces.KEPT / kept_workspaces.WORKSPACE / "run.sh").write_bytes(b"#!/bin/no")
    assert _put_back(new, taken.manifest, store) is not None
    assert (new / kept_workspaces.WORKSPACE / "run.sh").read_bytes() == b"#!/bin/sh"


@pytest.mark.parametrize("place", ["digest", "head", "tree", "length", "absent"])
def test_a_damaged_description_counts_for_nothing(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    place: str,
) -> None:
    """One wrong byte anywhere, and the session is restored in full."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    taken = _leave(old, store)
    kept.keep(old, KEY)
    kept.take(KEY, new)
    path = new / kept_workspaces.KEPT / kept_description.NAME
    data = bytearray(path.read_bytes())
    at = {"digest": 10, "head": data.index(b"\n") + 2, "tree": -40, "length": -1, "absent": -1}
    data[at[place]] ^= 1
    path.write_bytes(data[:-1] if place == "length" else data)
    if place == "absent":
        path.unlink()
    assert _put_back(new, taken.manifest, store) is None
    restore.restore(taken.manifest, new / kept_workspaces.WORKSPACE, store, "acme")


def test_a_description_of_another_boot_counts_for_nothing(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A power cut may leave a file its times and not its content."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    taken = _leave(old, store)
    kept.keep(old, KEY)
    kept.take(KEY, new)
    monkeypatch.setattr(kept_description, "boot_id", lambda: "another")
    assert _put_back(new, taken.manifest, store) is None
    assert not kept.keep(new, KEY)


@pytest.mark.parametrize(
    "other", [records.SessionKey("globex", "one"), records.SessionKey("acme", "two")]
)
def test_another_session_never_gets_it(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    other: records.SessionKey,
) -> None:
    """Not by asking, not if the folder lies in its place, and not if it is handed to it."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    taken = _leave(old, store)
    assert not kept.keep(old, other)
    assert kept.keep(old, KEY)
    assert not kept.take(other, new)
    place = tmp_path / "kept" / other.tenant / other.session
    place.parent.mkdir(exist_ok=True)
    (tmp_path / "kept" / "acme" / "one").rename(place)
    kept.clean_leftovers()
    assert not kept.take(other, new)
    _leave(_slot(tmp_path, "third"), store)
    (tmp_path / "slots" / "third").rename(new / kept_workspaces.KEPT)
    assert kept_workspaces.put_back(new, other, taken.manifest, store) is None


def test_what_cannot_be_put_right_is_restored_in_full(
    kept: kept_workspaces.KeptWorkspaces, store: workspaces.RecordingBlobs, tmp_path: pathlib.Path
) -> None:
    """A workspace that is no folder any more is removed, and what it points to is not touched."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    taken = _leave(old, store)
    kept.keep(old, KEY)
    kept.take(KEY, new)
    root = new / kept_workspaces.KEPT / kept_workspaces.WORKSPACE
    root.rename(tmp_path / "elsewhere")
    root.symlink_to(tmp_path / "elsewhere")
    before = workspaces.describe(tmp_path / "elsewhere")
    mode = stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode)
    assert _put_back(new, taken.manifest, store) is None
    assert workspaces.describe(tmp_path / "elsewhere") == before
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == mode
    restore.restore(taken.manifest, new / kept_workspaces.WORKSPACE, store, "acme")


def test_a_slot_that_touched_nothing_gives_back_what_it_was_given(
    kept: kept_workspaces.KeptWorkspaces, store: workspaces.RecordingBlobs, tmp_path: pathlib.Path
) -> None:
    """A boot that lost the race for its session costs no kept workspace."""
    old, lost, new = (_slot(tmp_path, name) for name in ("old", "lost", "new"))
    taken = _leave(old, store)
    kept.keep(old, KEY)
    kept.take(KEY, lost)
    assert kept.keep(lost, KEY)
    assert kept.take(KEY, new)
    assert _put_back(new, taken.manifest, store) is not None


def test_what_a_crash_left_is_not_kept(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once the process has begun to use a workspace, only its own orderly end describes it."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    taken = _leave(old, store)
    kept.keep(old, KEY)
    kept.take(KEY, new)
    monkeypatch.setattr(restore, "put_right", _die)
    with pytest.raises(SystemExit):
        _put_back(new, taken.manifest, store)
    assert not kept.keep(new, KEY)


def _die(*_: object, **__: object) -> None:
    raise SystemExit
