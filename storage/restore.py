"""Putting a stored workspace back on a disk.

It is built beside its place, in `<destination>.partial`, and renamed when it is whole: what a crash
leaves is never taken for a workspace. Nothing is synced, for the disk is a cache of what is stored.
Links are made last, so nothing is ever written through one.

A workspace that was kept is put right where it lies: what is right already is not touched.
"""

import collections
import concurrent.futures
import contextlib
import logging
import os
import pathlib
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec

from torpor import errors
from torpor.storage import blobs, disk_files, manifest, workspace_scan, workspace_tree

log = logging.getLogger(__name__)

#: Blobs read at the same time: enough to hide a network's round trips, few enough that the pieces
#: they hold stay below 10 MB.
READ_THREADS = 8
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
T = TypeVar("T")


class _There(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder on the disk holds already."""

    #: Every name in it.
    stamps: Mapping[str, workspace_tree.Stamp | None]
    #: What is known to be stored of names, without those that changed.
    right: dict[str, manifest.Entry]
    folders: Mapping[str, workspace_tree.Folder | workspace_scan.Draft]
    #: As it was stored, before whatever changed.
    known: workspace_tree.Folder


class _Folder(msgspec.Struct, kw_only=True):
    """A folder that is being restored."""

    #: Relative to the workspace: empty, or ending with a slash.
    path: str
    digest: str
    #: None when it has to be made.
    there: _There | None = None
    #: Set when it is right with all that is below it.
    whole: workspace_tree.Folder | None = None
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
        discard(partial)
        partial.mkdir(mode=0o700, parents=True)
        try:
            with concurrent.futures.ThreadPoolExecutor(READ_THREADS) as pool:
                restoring = _Restoring(partial, store, tenant, pool, left_out)
                tree = restoring.run(_Folder(path="", digest=digest))
            partial.rename(destination)
        except BaseException:
            discard(partial)
            raise
    except OSError as error:
        raise disk_files.storage_error(error, destination) from error
    return tree


def put_right(
    kept: pathlib.Path,
    known: workspace_tree.Folder,
    digest: str,
    destination: pathlib.Path,
    store: blobs.BlobStore,
    tenant: str,
    *,
    looked: bool = False,
) -> workspace_tree.Folder | None:
    """Make `destination` hold what a manifest describes, from a workspace that was `known` once.

    What does not look as it did, or is another file by now, is read from the storage; the rest is
    trusted as it lies: all of it, if somebody `looked` since anybody could change it. Returns None
    on any doubt or trouble, with `kept` removed: `restore` then says what it is, if it is still
    there.
    """
    try:
        try:
            found = known if looked else workspace_scan.Scan().run(kept, known)
            kept.chmod(0o700)
            root = _existing("", digest, found)
            if root.whole is None:
                with concurrent.futures.ThreadPoolExecutor(READ_THREADS) as pool:
                    tree = _Restoring(kept, store, tenant, pool, None).run(root)
            else:
                tree = root.whole
            kept.rename(destination)
        except BaseException:
            discard(kept)
            raise
    except (OSError, errors.TorporError) as error:
        log.warning("%s is not used: %s", kept, error, extra={"action": "kept_not_used"})
        return None
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
        #: As text: building paths of files takes longer than some files.
        self._prefix = f"{root}{os.sep}"
        self._store = store
        self._tenant = tenant
        self._pool = pool
        self._left_out = left_out
        self._stamps: dict[str, workspace_tree.Stamp] = {}
        self._lock = threading.Lock()
        self._entries = 0

    def run(self, root: _Folder) -> workspace_tree.Folder:
        levels = self._levels(root)
        folders = [folder for level in levels for folder in level if folder.whole is None]
        for folder in folders:
            if folder.there is not None:
                self._clear(folder, folder.there)
            elif folder is not root:
                (self._root / folder.path).mkdir(mode=0o700)
        files, links, modes = self._wrong(folders)
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
        if folder.whole is not None:
            return
        there = folder.there or _NOTHING
        with self._sparing(folder.path or "./"):
            for digest, entries in self._pages(folder.digest, there.known):
                size = sum(entry.size_bytes for entry in entries)
                folder.pages.append(
                    workspace_tree.StoredPage(entries=entries, digest=digest, size_bytes=size)
                )
                self._count(len(entries), folder.path)
                for entry in entries:
                    if entry.kind is manifest.Kind.FOLDER:
                        name = os.fsdecode(entry.name)
                        path, found = f"{folder.path}{name}/", there.folders.get(name)
                        folder.folders[name] = (
                            _Folder(path=path, digest=entry.digest)
                            if found is None
                            else _existing(path, entry.digest, found)
                        )

    def _pages(
        self, digest: str, known: workspace_tree.Folder
    ) -> Iterable[tuple[str, tuple[manifest.Entry, ...]]]:
        stored = {page.digest: page.entries for page in known.pages}
        if digest == known.digest:
            return stored.items()
        return manifest.pages(self._store, self._tenant, digest, known=stored)

    def _clear(self, folder: _Folder, there: _There) -> None:
        """Remove from a folder what is not right; its own permissions are put right at the end."""
        here = self._root / folder.path
        here.chmod(0o700)
        wanted = {os.fsdecode(entry.name): entry for page in folder.pages for entry in page.entries}
        for name, stamp in there.stamps.items():
            if name in folder.folders and name in there.folders:
                entry = wanted[name]
                if stamp is not None and stat.S_IMODE(stamp[4]) & 0o777 == entry.mode:
                    self._stamps[folder.path + name] = stamp
            elif name in wanted and there.right.get(name) == wanted[name] and stamp is not None:
                self._stamps[folder.path + name] = stamp
            elif name in there.folders:
                discard(here / name)
            else:
                (here / name).unlink()

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
            fd = os.open(self._prefix + path, _CREATE, 0o600)
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

    def _wrong(self, folders: list[_Folder]) -> tuple[list[tuple[str, manifest.Entry]], ...]:
        """Return the files, links and folders that are not right yet, each with its path."""
        files: list[tuple[str, manifest.Entry]] = []
        links: list[tuple[str, manifest.Entry]] = []
        below: list[tuple[str, manifest.Entry]] = []
        kinds = {manifest.Kind.FILE: files, manifest.Kind.LINK: links, manifest.Kind.FOLDER: below}
        for folder in folders:
            for page in folder.pages:
                for entry in page.entries:
                    name = os.fsdecode(entry.name)
                    child = folder.folders.get(name)
                    # A folder in which something was put right looks different by now.
                    touched = child is not None and child.whole is None
                    if touched or folder.path + name not in self._stamps:
                        kinds[entry.kind].append((folder.path + name, entry))
        return files, links, below

    def _stamp(self, path: str) -> None:
        self._stamps[path] = workspace_tree.stamp_of((self._root / path).lstat())

    def _tree(self, folder: _Folder, now_ns: int) -> workspace_tree.Folder:
        if folder.whole is not None:
            return folder.whole
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


_NOTHING = _There(stamps={}, right={}, folders={}, known=workspace_tree.EMPTY)


def _existing(
    path: str, digest: str, found: workspace_tree.Folder | workspace_scan.Draft
) -> _Folder:
    """Return a folder that is there, for what it is to hold."""
    if isinstance(found, workspace_tree.Folder):
        there = _There(stamps=found.stamps, right=found.entries, folders=found.folders, known=found)
        whole = found if found.digest == digest else None
        return _Folder(path=path, digest=digest, there=there, whole=whole)
    known, dirty = found.known, set(found.dirty)
    right = {
        name: entry
        for name, entry in known.entries.items()
        if name in found.stamps and name not in dirty and name not in found.folders
    }
    there = _There(stamps=found.stamps, right=right, folders=found.folders, known=known)
    return _Folder(path=path, digest=digest, there=there)


def _each(pool: concurrent.futures.Executor, work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do `work` for each item at the same time; after an error what has not begun is not done."""
    # All take from one queue: a future for each of many small files costs more than the file.
    left, failed = collections.deque(items), threading.Event()
    if len(left) == 1:
        # Most sessions have no files, and to start a thread takes longer than to restore none.
        work(left[0])
        return

    def take() -> None:
        while not failed.is_set():
            try:
                item = left.popleft()
            except IndexError:
                return
            try:
                work(item)
            except BaseException:
                failed.set()
                raise

    futures = [pool.submit(take) for _ in range(min(READ_THREADS, len(left)))]
    try:
        for future in futures:
            future.result()
    finally:
        failed.set()


def discard(folder: pathlib.Path) -> None:
    """Remove a folder with all that is in it, whatever its permissions; of a link only the link.

    Raises:
        OSError: something resists.
    """
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
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
