"""Workspaces for tests: folders with everything odd in them, and what a folder holds as a value."""

import os
import pathlib
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from torpor.storage import blobs, kept_description, kept_workspaces, records, snapshot


def describe(root: pathlib.Path) -> dict[str, tuple[str, int, bytes]]:
    """Return relative path → (kind, permission bits, content or target) of all in a folder."""
    found: dict[str, tuple[str, int, bytes]] = {}
    for folder, folders, files in os.walk(root):
        for path in (pathlib.Path(folder, name) for name in folders + files):
            mode = path.lstat().st_mode
            kind, content = "other", b""
            if stat.S_ISLNK(mode):
                kind, content = "link", os.fsencode(path.readlink())
            elif stat.S_ISDIR(mode):
                kind = "folder"
            elif stat.S_ISREG(mode):
                kind, content = "file", path.read_bytes()
            found[os.fspath(path.relative_to(root))] = (kind, stat.S_IMODE(mode), content)
    return found


def make_oddities(root: pathlib.Path) -> None:
    """Fill a folder with files, names, links and permissions that are easy to get wrong."""
    (root / "empty file").touch()
    (root / "run.sh").write_bytes(b"#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "empty folder").mkdir()
    deep = root.joinpath(*("deep",) * 40)
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"here")
    (root / "überraschung 🎁.txt").write_bytes(b"unicode")
    (root / os.fsdecode(b"latin1-\xe9\xff")).write_bytes(b"no utf-8")
    (root / "new\nline").write_bytes(b"\0")
    (root / "dangling").symlink_to("nowhere/at all")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "up").symlink_to("../..")
    (root / "large").write_bytes(os.urandom(1 << 20) + b"more than one piece")
    (root / "hard one").write_bytes(b"twice")
    (root / "hard two").hardlink_to(root / "hard one")
    if os.getuid() == 0:
        (root / "locked").write_bytes(b"secret")
        (root / "locked").chmod(0)
    (root / "read only").mkdir()
    (root / "read only" / "inside").write_bytes(b"in")
    (root / "read only").chmod(0o555)


def forget_left(scratch: pathlib.Path, key: records.SessionKey) -> None:
    """Have the next wake of a session that has left restore its files from what is stored.

    Args:
        scratch: the folder with the folders of all nodes.
        key: the session; the process that had it has ended, or told that it left.
    """
    # What is kept moves from the slot to the node meanwhile, and is found here or there.
    for place in ("slots/*", f"slots/*/{kept_workspaces.KEPT}", f"kept/{key.tenant}/{key.session}"):
        for description in scratch.glob(f"*/{place}/{kept_description.NAME}"):
            head = kept_description.head(description.parent)
            if head is not None and head.key == key:
                description.unlink(missing_ok=True)


def commit(snapshotter: snapshot.Snapshotter) -> snapshot.Snapshot:
    """Take a snapshot, as if a commit then named it."""
    taken = snapshotter.snapshot()
    snapshotter.adopt(taken.tree)
    return taken


def fill(root: pathlib.Path) -> None:
    """Fill a folder with few files, one of each kind."""
    (root / "run.sh").write_bytes(b"#!/bin/sh")
    (root / "dangling").symlink_to("nowhere")
    (root / os.fsdecode(b"latin1-\xe9\xff")).write_bytes(b"no utf-8")
    (root / "empty folder").mkdir()
    (root / "read only").mkdir()
    (root / "read only" / "inside").write_bytes(b"in")
    (root / "read only").chmod(0o555)
    (root / "a").mkdir()
    (root / "a" / "first").write_bytes(b"first")
    (root / "a" / "second").write_bytes(b"second")


def leave(
    slot: pathlib.Path, store: blobs.BlobStore, key: records.SessionKey, *, at_ms: int
) -> snapshot.Snapshot:
    """Make a slot as a session leaves it that goes in order; its workspace was filled by `fill`."""
    root = slot / kept_workspaces.WORKSPACE
    root.mkdir(parents=True)
    fill(root)
    taken = snapshot.Snapshotter(root, store, key.tenant, 1 << 20).snapshot()
    kept_description.write(slot, key, taken.tree, at_ms=at_ms, since_ticks=0)
    (slot / "board").write_bytes(b"board")
    return taken


class RecordingBlobs:
    """A blob store that notes what is asked of the one behind it."""

    def __init__(self, store: blobs.BlobStore) -> None:
        self._store = store
        #: Digests of what was put as bytes: manifests, when a workspace is stored.
        self.puts: list[str] = []
        #: File name → digest of what was put as a file.
        self.files: dict[str, str] = {}
        #: Digests read.
        self.reads: list[str] = []

    def forget(self) -> None:
        """Begin the notes anew."""
        self.puts, self.files, self.reads = [], {}, []

    def upload(self, tenant: str) -> "RecordingUpload":
        """Begin a group of blobs."""
        return RecordingUpload(self, self._store.upload(tenant))

    def get(self, tenant: str, digest: str, *, bytes_max: int) -> bytes:
        """Return a blob."""
        self.reads.append(digest)
        return self._store.get(tenant, digest, bytes_max=bytes_max)

    def chunks(self, tenant: str, digest: str) -> Iterator[bytes]:
        """Yield a blob in pieces."""
        self.reads.append(digest)
        return self._store.chunks(tenant, digest)

    def exists(self, tenant: str, digest: str) -> bool:
        """Whether the blob is there."""
        return self._store.exists(tenant, digest)


class RecordingUpload:
    """An upload of `RecordingBlobs`."""

    def __init__(self, notes: RecordingBlobs, upload: blobs.Upload) -> None:
        self._notes = notes
        self._upload = upload

    def __enter__(self) -> Self:
        self._upload.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._upload.__exit__(kind, error, trace)

    def put(self, data: bytes) -> str:
        """Write bytes."""
        digest = self._upload.put(data)
        self._notes.puts.append(digest)
        return digest

    def put_file(self, source: pathlib.Path) -> tuple[str, int]:
        """Copy a file."""
        digest, size = self._upload.put_file(source)
        self._notes.files[source.name] = digest
        return digest, size
