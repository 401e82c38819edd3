"""Single files: paths that clients give, reading without a workspace, placing into a live one."""

import os
import pathlib

import pytest

from torpor import errors
from torpor.storage import local_blobs, manifest, snapshot, workspace_files
from torpor.testing import workspaces


@pytest.fixture
def store(tmp_path: pathlib.Path) -> workspaces.RecordingBlobs:
    """Return a store that notes what is read and written."""
    return workspaces.RecordingBlobs(local_blobs.LocalBlobStore(tmp_path / "storage"))


def _take(root: pathlib.Path, store: workspaces.RecordingBlobs) -> str:
    digest = snapshot.Snapshotter(root, store, "acme", 1 << 30).snapshot().manifest
    store.forget()
    return digest


def _put(store: workspaces.RecordingBlobs, data: bytes) -> str:
    with store.upload("acme") as upload:
        return upload.put(data)


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a", ("a",)),
        ("a/b/c", ("a", "b", "c")),
        ("./a//b/", ("a", "b")),
        ("..a/b..", ("..a", "b..")),
        ("ü\\ b", ("ü\\ b",)),
        ("n" * 255, ("n" * 255,)),
    ],
)
def test_paths_that_stay_inside(path: str, names: tuple[str, ...]) -> None:
    """Ordinary relative paths, also with needless parts and unusual characters."""
    assert workspace_files.parts(path) == names


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "/",
        "/etc/passwd",
        "..",
        "a/../b",
        "a/..",
        "../a",
        "a\0b",
        "\ud800",
        "n" * 256,
        "ü" * 128,
        "n/" * 129,
        "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn/" * 100,
    ],
)
def test_paths_that_do_not(path: str) -> None:
    """Everything that is absolute, climbs, names nothing or is too long is refused everywhere."""
    with pytest.raises(errors.PathOutsideWorkspace):
        workspace_files.parts(path)


# --- reading --------------------------------------------------------------------------------------


def test_find_reads_the_manifests_along_the_path(
    root: pathlib.Path, store: workspaces.RecordingBlobs
) -> None:
    """Kind, size, permissions and digest are known without reading anything else."""
    for path in ("a/b/file", "a/other/file", "more/file"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    (root / "a" / "b" / "file").chmod(0o640)
    digest = _take(root, store)
    entry = workspace_files.find(store, "acme", digest, "a/b/file")
    assert len(store.reads) == 3
    assert (entry.kind, entry.mode, entry.size_bytes) == (manifest.Kind.FILE, 0o640, 8)
    assert b"".join(store.chunks("acme", entry.digest)) == b"a/b/file"
    assert workspace_files.find(store, "acme", digest, "a").size_bytes == 20


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("absent", errors.WorkspaceFileNotFound),
        ("folder/absent", errors.WorkspaceFileNotFound),
        ("folder/file/below", errors.WorkspaceFileNotFound),
        ("empty/absent", errors.WorkspaceFileNotFound),
        ("link/file", errors.PathOutsideWorkspace),
        ("folder/../link", errors.PathOutsideWorkspace),
    ],
)
def test_find_says_why_not(
    root: pathlib.Path,
    store: workspaces.RecordingBlobs,
    path: str,
    error: type[errors.TorporError],
) -> None:
    """What is not there is not found; what lies behind a link is not reached."""
    (root / "folder").mkdir()
    (root / "folder" / "file").touch()
    (root / "empty").mkdir()
    (root / "link").symlink_to("folder")
    digest = _take(root, store)
    assert workspace_files.find(store, "acme", digest, "link").target == b"folder"
    with pytest.raises(error):
        workspace_files.find(store, "acme", digest, path)
    with pytest.raises(errors.TorporError):
        workspace_files.listing(store, "acme", digest, path)


def _pages(
    store: workspaces.RecordingBlobs, digest: str, path: str, recursive: bool, limit: int
) -> list[str]:
    found: list[str] = []
    after = ""
    for _ in range(1_000):
        page = workspace_files.listing(
            store, "acme", digest, path, recursive=recursive, after=after, limit=limit
        )
        assert len(page.items) <= limit
        found += [item.path for item in page.items]
        after = page.next_after
        if not after:
            return found
    raise AssertionError("the listing does not end")


@pytest.mark.parametrize("limit", [1, 2, 3, 1_000])
def test_listing_is_complete_and_ordered_however_it_is_paged(
    root: pathlib.Path, store: workspaces.RecordingBlobs, limit: int
) -> None:
    """Each name once, in one order, whatever the size of a page."""
    for path in ("a/x", "a/b/y", "a-/z", "a.txt", "b/b/b", "b/b/b!", "c"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    (root / "empty").mkdir()
    (root / os.fsdecode(b"\xff")).touch()
    digest = _take(root, store)
    whole = ["a", "a/b", "a/b/y", "a/x", "a-", "a-/z", "a.txt", "b", "b/b", "b/b/b", "b/b/b!"]
    whole += ["c", "empty", os.fsdecode(b"\xff")]
    assert _pages(store, digest, "", True, limit) == whole
    assert _pages(store, digest, "", False, limit) == [path for path in whole if "/" not in path]
    assert _pages(store, digest, "a", True, limit) == ["a/b", "a/b/y", "a/x"]
    assert _pages(store, digest, "b/b", False, limit) == ["b/b/b", "b/b/b!"]
    assert _pages(store, digest, "empty", True, limit) == []
    assert _pages(store, digest, "a.txt", True, limit) == ["a.txt"]
    assert _pages(store, "", "", True, limit) == []


def test_a_page_of_a_large_folder_reads_little(
    root: pathlib.Path, store: workspaces.RecordingBlobs
) -> None:
    """The index and the page or two that the listing needs, wherever it begins."""
    for number in range(3_000):
        (root / f"file-{number:04}").touch()
    digest = _take(root, store)
    for after in ("", "file-1500", "file-2980"):
        store.forget()
        page = workspace_files.listing(store, "acme", digest, after=after, limit=10)
        assert len(page.items) == 10
        assert len(store.reads) <= 3


# --- placing --------------------------------------------------------------------------------------


def test_a_placed_file_is_there_with_its_folders(
    root: pathlib.Path, store: workspaces.RecordingBlobs
) -> None:
    """Content and permissions are as asked for; a second one takes its place."""
    size = workspace_files.place(root, "a/b/file", store, "acme", _put(store, b"one"), 0o640)
    assert size == 3
    workspace_files.place(root, "a/b/file", store, "acme", _put(store, b"two"), 0o6755)
    assert workspaces.describe(root)["a/b/file"] == ("file", 0o755, b"two")
    assert len(workspaces.describe(root)) == 3


def test_placing_follows_no_link(
    root: pathlib.Path, store: workspaces.RecordingBlobs, tmp_path: pathlib.Path
) -> None:
    """A link on the way is refused, a link at the end is replaced; nothing outside is touched."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"mine")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "file").symlink_to(tmp_path / "outside" / "file")
    (root / "plain").touch()
    digest = _put(store, b"evil")
    for path in ("out/file", "out/new/file", "plain/file", "../outside/file"):
        with pytest.raises(errors.PathOutsideWorkspace):
            workspace_files.place(root, path, store, "acme", digest, 0o644)
    workspace_files.place(root, "file", store, "acme", digest, 0o644)
    assert workspaces.describe(tmp_path / "outside") == {"file": ("file", 0o644, b"mine")}
    assert workspaces.describe(root)["file"] == ("file", 0o644, b"evil")


def test_a_file_that_cannot_be_placed_leaves_nothing(
    root: pathlib.Path,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder in the way, a bad blob or a full disk: the workspace stays as it was."""
    (root / "folder").mkdir()
    (root / "kept").write_bytes(b"kept")
    before = workspaces.describe(root)
    digest = _put(store, b"content")
    with pytest.raises(errors.InvalidField):
        workspace_files.place(root, "folder", store, "acme", digest, 0o644)
    with pytest.raises(errors.BlobMissing):
        workspace_files.place(root, "kept", store, "acme", f"b3-{'0' * 64}", 0o644)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(errors.StorageFull):
        workspace_files.place(root, "kept", store, "acme", digest, 0o644)
    monkeypatch.undo()
    (tmp_path / "storage" / "acme" / "blobs" / digest[3:5] / digest).write_bytes(b"contenT")
    with pytest.raises(errors.BlobCorrupt):
        workspace_files.place(root, "kept", store, "acme", digest, 0o644)
    assert workspaces.describe(root) == before
