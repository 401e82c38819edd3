"""Putting a stored workspace back on a disk.

It is built beside its place, in `<destination>.partial`, and renamed when it is whole: what a crash
leaves is never taken for a workspace. Nothing is synced, for the disk is a cache of what is stored.
Links are made last, so nothing is ever written through one.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec

from torpor import errors
from torpor.storage import blobs, disk_files, manifest, workspace_tree

#: Blobs read at the same time: enough to hide a network's round trips, few enough that the pieces
#: they hold stay below 10 MB.
READ_THREADS = 8
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
T = TypeVar("T")


class _Folder(msgspec.Struct, kw_only=True):
    """A folder that is being restored."""

    #: Relative to the workspace: empty, or ending with a slash.
    path: str
    digest: str
    pages: list[workspace_tree.StoredPage] = msgspec.field(default_factory=list)
    folders: "dict[str, _Folder]" = msgspec.field(default_factory=dict)


def restore(
    digest: str,
    destination: pathlib.Path,
    store: blobs.BlobStore,
    tenant: str,
    *,
    left_out: list[str] | None = None,
) -> workspace_tree.Folder:
    """Make `destination`, which is absent or empty, hold the workspace that a manifest describes.

    Returns the tree for `Snapshotter.adopt`, so that the first snapshot reads nothing again. With
    `left_out` damage is no error: the paths that it hits are appended, a folder's with a slash at
    its end, `./` for the root; the tree is then empty, for nothing stored is what is on the disk.

    Raises:
        BlobMissing, BlobCorrupt: with the `path` of the file concerned, unless there is `left_out`.
        StorageFull, StorageUnavailable: of the shared storage, or of the disk written to.
    """
    partial = destination.with_name(f"{destination.name}.partial")
    try:
        _discard(partial)
        partial.mkdir(mode=0o700, parents=True)
        try:
            with concurrent.futures.ThreadPoolExecutor(READ_THREADS) as pool:
                tree = _Restoring(partial, store, tenant, pool, left_out).run(digest)
            partial.rename(destination)
        except BaseException:
            _discard(partial)
            raise
    except OSError as error:
        raise disk_files.storage_error(error, destination) from error
    return tree


class _Restoring:
    def __init__(
        self,
        root: pathlib.Path,
        store: blobs.BlobStore,
        tenant: str,
        pool: concurrent.futures.Executor,
        left_out: list[str] | None,
    ) -> None:
        self._root = root
        self._store = store
        self._tenant = tenant
        self._pool = pool
        self._left_out = left_out
        self._stamps: dict[str, workspace_tree.Stamp] = {}
        self._lock = threading.Lock()
        self._entries = 0

    def run(self, digest: str) -> workspace_tree.Folder:
        root = _Folder(path="", digest=digest)
        levels = self._levels(root)
        folders = [folder for level in levels for folder in level]
        for folder in folders[1:]:
            (self._root / folder.path).mkdir(mode=0o700)
        files, links, modes = _sorted_out(folders)
        # The largest first: they take longest, and what is written last has to be read again.
        files.sort(key=lambda item: -item[1].size_bytes)
        _each(self._pool, self._write, files)
        for path, entry in links:
            (self._root / path).symlink_to(os.fsdecode(entry.target))
            self._stamp(path)
        # The deepest first: a folder's own permissions may bar the way to what is in it.
        for path, entry in reversed(modes):
            (self._root / path).chmod(entry.mode)
        for path, _ in modes:
            self._stamp(path)
        return workspace_tree.EMPTY if self._left_out else self._tree(root, time.time_ns())

    def _levels(self, root: _Folder) -> list[list[_Folder]]:
        """Read all manifests, one level of folders after the other."""
        levels = [[root]]
        while levels[-1]:
            _each(self._pool, self._read, levels[-1])
            levels.append([child for folder in levels[-1] for child in folder.folders.values()])
        return levels

    def _read(self, folder: _Folder) -> None:
        with self._sparing(folder.path or "./"):
            for digest, entries in manifest.pages(self._store, self._tenant, folder.digest):
                size = sum(entry.size_bytes for entry in entries)
                folder.pages.append(
                    workspace_tree.StoredPage(entries=entries, digest=digest, size_bytes=size)
                )
                self._count(len(entries), folder.path)
                for entry in entries:
                    if entry.kind is manifest.Kind.FOLDER:
                        name = os.fsdecode(entry.name)
                        path = f"{folder.path}{name}/"
                        folder.folders[name] = _Folder(path=path, digest=entry.digest)

    def _count(self, entries: int, path: str) -> None:
        with self._lock:
            self._entries += entries
        if (
            self._entries > manifest.ENTRIES_MAX
            or path.count("/") > manifest.DEPTH_MAX
            or len(os.fsencode(path)) > manifest.PATH_BYTES_MAX
        ):
            raise errors.BlobCorrupt("the manifest is larger than any that a snapshot makes")

    def _write(self, item: tuple[str, manifest.Entry]) -> None:
        path, entry = item
        with self._sparing(path):
            fd = os.open(self._root / path, _CREATE, 0o600)
            try:
                disk_files.write_pieces(fd, self._content(entry))
                os.fchmod(fd, entry.mode)
                self._stamps[path] = workspace_tree.stamp_of(os.fstat(fd))
            except errors.DataLoss:
                (self._root / path).unlink()
                raise
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def _sparing(self, path: str) -> Iterator[None]:
        """Let damage say which path of the workspace it hits, or take note of it and go on."""
        try:
            yield
        except errors.DataLoss as error:
            if self._left_out is not None:
                self._left_out.append(path)
                return
            named = error.ids | {"path": path}
            raise type(error)(f"{path!r}: {error.message}", **named) from error

    def _content(self, entry: manifest.Entry) -> Iterator[bytes]:
        size = 0
        for piece in self._store.chunks(self._tenant, entry.digest):
            size += len(piece)
            if size > entry.size_bytes:
                break
            yield piece
        if size != entry.size_bytes:
            raise errors.BlobCorrupt("its size is not what its manifest says", digest=entry.digest)

    def _stamp(self, path: str) -> None:
        self._stamps[path] = workspace_tree.stamp_of((self._root / path).lstat())

    def _tree(self, folder: _Folder, now_ns: int) -> workspace_tree.Folder:
        entries = {
            os.fsdecode(entry.name): entry for page in folder.pages for entry in page.entries
        }
        return workspace_tree.Folder(
            stamps={
                name: workspace_tree.settled(self._stamps[folder.path + name], now_ns)
                for name in entries
            },
            entries=entries,
            folders={name: self._tree(child, now_ns) for name, child in folder.folders.items()},
            pages=tuple(folder.pages),
            digest=folder.digest,
            size_bytes=sum(page.size_bytes for page in folder.pages),
        )


def _sorted_out(folders: list[_Folder]) -> tuple[list[tuple[str, manifest.Entry]], ...]:
    """Return the files, the links and the folders among all entries, each with its path."""
    files: list[tuple[str, manifest.Entry]] = []
    links: list[tuple[str, manifest.Entry]] = []
    below: list[tuple[str, manifest.Entry]] = []
    kinds = {manifest.Kind.FILE: files, manifest.Kind.LINK: links, manifest.Kind.FOLDER: below}
    for folder in folders:
        for page in folder.pages:
            for entry in page.entries:
                kinds[entry.kind].append((folder.path + os.fsdecode(entry.name), entry))
    return files, links, below


def _each(pool: concurrent.futures.Executor, work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do `work` for each item at the same time; after an error what has not begun is not done."""
    futures = [pool.submit(work, item) for item in items]
    try:
        for future in futures:
            future.result()
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _discard(folder: pathlib.Path) -> None:
    """Remove a folder with all that is in it, whatever its permissions."""
    if not folder.exists():
        return
    _unlock(folder)
    shutil.rmtree(folder)


def _unlock(folder: pathlib.Path) -> None:
    folder.chmod(0o700)
    with os.scandir(folder) as items:
        for item in items:
            if item.is_dir(follow_symlinks=False):
                _unlock(pathlib.Path(item.path))
