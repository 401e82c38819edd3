"""A scan of a workspace that is not still, or that holds what cannot be kept."""

import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from torpor import errors
from torpor.storage import (
    disk_files,
    local_blobs,
    manifest,
    snapshot,
    workspace_scan,
    workspace_tree,
)
from torpor.testing import workspaces


@pytest.fixture
def store(tmp_path: pathlib.Path) -> local_blobs.LocalBlobStore:
    """Return a store in `tmp_path/storage`."""
    return local_blobs.LocalBlobStore(tmp_path / "storage")


@pytest.fixture
def snapshotter(root: pathlib.Path, store: local_blobs.LocalBlobStore) -> snapshot.Snapshotter:
    """Return a snapshotter of the workspace."""
    return snapshot.Snapshotter(root, store, "acme", quota_bytes=1 << 30)


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
    taken = workspaces.commit(snapshotter)
    assert sorted(set(taken.tree.entries) - {"a", "b", "c"}) == ["e", "f"]
    monkeypatch.undo()
    assert sorted(workspaces.commit(snapshotter).tree.entries) == ["e", "f"]


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
    assert workspaces.commit(snapshotter).tree.entries == {}
    assert workspaces.commit(snapshotter).tree.entries["folder"].kind is manifest.Kind.LINK


def test_a_file_that_grows_while_it_is_read(
    root: pathlib.Path,
    snapshotter: snapshot.Snapshotter,
    store: local_blobs.LocalBlobStore,
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
    entry = workspaces.commit(snapshotter).tree.entries["log"]
    monkeypatch.undo()
    assert b"".join(store.chunks("acme", entry.digest)) == b"x" * (3 << 20)
    assert entry.size_bytes == 3 << 20
    assert workspaces.commit(snapshotter).tree.entries["log"].size_bytes == 6 << 20


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
        taken = workspaces.commit(snapshotter)
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
