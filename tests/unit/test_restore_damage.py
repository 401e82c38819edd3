"""Restoring what is left: all that is whole comes back, and what is not is named."""

import pathlib

import pytest

from torpor.storage import blobs, local_blobs, restore, snapshot
from torpor.testing import workspaces

QUOTA = 1 << 30


@pytest.fixture
def store(tmp_path: pathlib.Path) -> local_blobs.LocalBlobStore:
    """Return a store in `tmp_path/storage`."""
    return local_blobs.LocalBlobStore(tmp_path / "storage")


def _take(root: pathlib.Path, store: blobs.BlobStore) -> snapshot.Snapshot:
    return snapshot.Snapshotter(root, store, "acme", QUOTA).snapshot()


def _blob(tmp_path: pathlib.Path, digest: str) -> pathlib.Path:
    return tmp_path / "storage" / "acme" / "blobs" / digest[3:5] / digest


@pytest.mark.parametrize("damage", ["gone", "torn", "flipped"])
def test_damage_may_be_left_out(
    root: pathlib.Path, store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path, damage: str
) -> None:
    """All that is whole comes back, what is not is named, and the next snapshot is of what is."""
    for name in ("bad", "good"):
        (root / name).mkdir()
        (root / name / "file").write_text(name)
        (root / f"{name}-file").write_text(f"{name}-file")
    (root / "link").symlink_to("bad/file")
    taken = _take(root, store)
    for digest in (taken.tree.folders["bad"].digest, taken.tree.entries["bad-file"].digest):
        path = _blob(tmp_path, digest)
        data = path.read_bytes()
        path.unlink()
        if damage != "gone":
            path.write_bytes(data[:-1] if damage == "torn" else data[:-1] + b"?")
    left_out: list[str] = []
    tree = restore.restore(taken.manifest, tmp_path / "new", store, "acme", left_out=left_out)
    assert sorted(left_out) == ["bad-file", "bad/"]
    (root / "bad" / "file").unlink()
    (root / "bad-file").unlink()
    assert workspaces.describe(tmp_path / "new") == workspaces.describe(root)
    snapshotter = snapshot.Snapshotter(tmp_path / "new", store, "acme", QUOTA)
    snapshotter.adopt(tree)
    assert snapshotter.snapshot().manifest == _take(root, store).manifest


def test_nothing_to_leave_out(
    root: pathlib.Path, store: local_blobs.LocalBlobStore, tmp_path: pathlib.Path
) -> None:
    """What is whole comes back in the same way as without the permission to leave out."""
    workspaces.make_oddities(root)
    taken, left_out = _take(root, store), list[str]()
    tree = restore.restore(taken.manifest, tmp_path / "new", store, "acme", left_out=left_out)
    assert (left_out, tree.digest) == ([], taken.manifest)
    assert workspaces.describe(tmp_path / "new") == workspaces.describe(root)
