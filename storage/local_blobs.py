"""Blobs in a folder that all nodes share: a local disk or NFS.

Layout: `<root>/<tenant>/blobs/<first two hex digits>/<digest>`. What is being written has a hidden
name, `.tmp-…`, and gets its own by a hard link: that is atomic, also on NFS, and cannot overwrite.
So a blob that can be seen is whole, unless a machine lost what it had promised to keep; the size
tells most of that, the hash all of it.
"""

import concurrent.futures
import contextlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import blake3

from torpor import errors, ids, limits, probes
from torpor.storage import digests, disk_files, quarantine, storage_marker

#: Syncs at the same time: a thread waits for the disk, not for the CPU, and a journal takes what is
#: synced together in one go. Past eight a local disk gains nothing.
SYNC_THREADS = 8
#: Folders known to be on the disk, all tenants' together: some 15 MB. Forgetting costs a few syncs.
DURABLE_MAX = 65_536
#: Damaged blobs remembered by one process; those forgotten are mended once they are read again.
CORRUPT_MAX = 4_096
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
T = TypeVar("T")


class LocalBlobStore:
    """A `blobs.BlobStore` in one folder."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = root
        #: Folders whose own entry is known to be on the disk.
        self._durable: set[pathlib.Path] = set()
        #: Blobs that were read and found damaged: who puts the same bytes again mends them.
        self._corrupt: set[str] = set()

    @property
    def marker_path(self) -> str:
        """Where the marker is that tells this storage from others."""
        return str(self._root / storage_marker.NAME)

    def marker(self) -> str:
        """Return the id in the marker; empty when there is none."""
        return storage_marker.read(self._root)

    def mark(self) -> str:
        """Return the id in the marker, after writing one if there is none."""
        return storage_marker.write(self._root)

    def upload(self, tenant: str) -> "LocalUpload":
        """Begin a group of blobs."""
        return LocalUpload(self._folder(tenant), self._root, self._durable, self._corrupt)

    def get(self, tenant: str, digest: str, *, bytes_max: int) -> bytes:
        """Return a blob whose hash was checked.

        Raises:
            BlobMissing, BlobCorrupt (also when it is larger than `bytes_max`), StorageUnavailable
        """
        pieces, size = [], 0
        for piece in self._pieces(tenant, digest):
            pieces.append(piece)
            size += len(piece)
            if size > bytes_max:
                raise errors.BlobCorrupt(
                    f"blob {digest} is larger than {bytes_max} bytes", digest=digest
                )
        data = b"".join(pieces)
        if digests.of(data) != digest:
            raise self._found_corrupt(digest)
        return data

    def chunks(self, tenant: str, digest: str) -> Iterator[bytes]:
        """Yield a blob in pieces of `FILE_CHUNK_BYTES`; raises `BlobCorrupt` at its end.

        Raises:
            BlobMissing, BlobCorrupt, StorageUnavailable
        """
        hasher = blake3.blake3()
        for piece in self._pieces(tenant, digest):
            hasher.update(piece)
            yield piece
        if digests.name(hasher) != digest:
            raise self._found_corrupt(digest)

    def exists(self, tenant: str, digest: str) -> bool:
        """Whether the blob is there; its content is not checked."""
        path = _path(self._folder(tenant), digest)
        try:
            path.lstat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise disk_files.storage_error(error, path) from error
        return True

    def _found_corrupt(self, digest: str) -> errors.BlobCorrupt:
        if len(self._corrupt) >= CORRUPT_MAX:
            self._corrupt.clear()
        self._corrupt.add(digest)
        return errors.BlobCorrupt(digest=digest)

    def _folder(self, tenant: str) -> pathlib.Path:
        return self._root / ids.check_name("tenant", tenant) / "blobs"

    def _pieces(self, tenant: str, digest: str) -> Iterator[bytes]:
        # As text: for a small file building a `Path` takes longer than reading it.
        name = digests.check(digest)
        text = f"{self._root}/{ids.check_name('tenant', tenant)}/blobs/{name[3:5]}/{name}"
        probes.reach(probes.Point.BLOB_READ, digest=digest)
        try:
            try:
                yield from disk_files.read_pieces(text)
            except FileNotFoundError:
                path = pathlib.Path(text)
                _look_again(path)
                # What `fsck` took for an orphan comes back when somebody needs it.
                if not path.exists() and not quarantine.put_back(self._root / tenant, digest):
                    raise
                yield from disk_files.read_pieces(path)
        except FileNotFoundError as error:
            raise errors.BlobMissing(digest=digest) from error
        except OSError as error:
            raise disk_files.storage_error(error, text) from error


class LocalUpload:
    """A `blobs.Upload`: writes at once, syncs and publishes at the end. For one thread."""

    def __init__(
        self,
        folder: pathlib.Path,
        root: pathlib.Path,
        durable: set[pathlib.Path],
        corrupt: set[str],
    ) -> None:
        self._folder = folder
        self._root = root
        self._durable = durable
        self._corrupt = corrupt
        #: Final path → the hidden file that will take its name.
        self._pending: dict[pathlib.Path, pathlib.Path] = {}
        #: Folders to sync: they got an entry, or hold one that its writer may not have synced yet.
        self._touched: set[pathlib.Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                _parallel(lambda item: self._publish(*item), self._pending.items())
                self._sync_folders()
        except OSError as failure:
            raise disk_files.storage_error(failure, self._folder) from failure
        finally:
            for temporary in self._pending.values():
                _remove(temporary)
            self._pending.clear()

    def put(self, data: bytes) -> str:
        """Write bytes; returns their digest.

        Raises:
            StorageFull, StorageUnavailable
        """
        digest = digests.of(data)
        path = _path(self._folder, digest)
        try:
            if not self._known(path, len(data)):
                self._pending[path] = self._write(path.parent, [data])[0]
        except OSError as error:
            raise disk_files.storage_error(error, path) from error
        return digest

    def put_file(self, source: pathlib.Path) -> tuple[str, int]:
        """Copy a file's present content in constant memory; returns its digest and size in bytes.

        What is hashed is what was copied, also if the file changes meanwhile. Follows no link.

        Raises:
            OSError: the source cannot be read.
            StorageFull, StorageUnavailable
        """
        pieces = disk_files.read_pieces(source)
        first = next(pieces, b"")
        if len(first) < limits.FILE_CHUNK_BYTES:
            # It fits in memory, so its name is known before anything is written.
            rest = b"".join(pieces)
            return self.put(first + rest), len(first) + len(rest)
        return self._put_large(first, pieces)

    def _put_large(self, first: bytes, rest: Iterator[bytes]) -> tuple[str, int]:
        hasher = blake3.blake3()
        source_error: OSError | None = None

        def hashed() -> Iterator[bytes]:
            nonlocal source_error
            hasher.update(first)
            yield first
            try:
                for piece in rest:
                    hasher.update(piece)
                    yield piece
            except OSError as error:
                source_error = error
                raise

        try:
            # The name is not known yet: any of the folders will do, for a link crosses folders.
            temporary, size = self._write(self._folder, hashed())
            path = _path(self._folder, digest := digests.name(hasher))
            if self._known(path, size):
                _remove(temporary)
            else:
                self._pending[path] = temporary
                self._make(path.parent)
        except OSError as error:
            if error is source_error:
                raise
            raise disk_files.storage_error(error, self._folder) from error
        return digest, size

    def _known(self, path: pathlib.Path, size: int) -> bool:
        """Whether this blob need not be written; touches one that is there, which keeps gc away."""
        if path in self._pending:
            return True
        self._touch_folder(path.parent)
        try:
            if path.lstat().st_size != size or path.name in self._corrupt:
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _write(self, folder: pathlib.Path, pieces: Iterable[bytes]) -> tuple[pathlib.Path, int]:
        probes.reach(probes.Point.BLOB_BEFORE)
        temporary = folder / f".tmp-{os.urandom(12).hex()}"
        try:
            fd = os.open(temporary, _CREATE, 0o600)
        except FileNotFoundError:
            self._make(folder)
            fd = os.open(temporary, _CREATE, 0o600)
        try:
            return temporary, disk_files.write_pieces(fd, pieces)
        except BaseException:
            _remove(temporary)
            raise
        finally:
            os.close(fd)

    def _make(self, folder: pathlib.Path) -> None:
        there = folder
        while not there.exists():
            there = there.parent
            self._touched.add(there)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._durable.discard(folder)
        self._touch_folder(folder)

    def _touch_folder(self, folder: pathlib.Path) -> None:
        self._touched.add(folder)
        # Whoever made this folder may not have synced its parents yet.
        while folder not in self._durable and folder != self._root:
            self._touched.add(folder := folder.parent)

    def _publish(self, path: pathlib.Path, temporary: pathlib.Path) -> None:
        _sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            same_size = path.lstat().st_size == temporary.lstat().st_size
            if not same_size or path.name in self._corrupt:
                temporary.replace(path)
                self._corrupt.discard(path.name)
                return
            # Another writer was faster, with the same bytes.
            os.utime(path)
        temporary.unlink()
        probes.reach(probes.Point.BLOB_AFTER, digest=path.name)

    def _sync_folders(self) -> None:
        _parallel(_sync, self._touched)
        if len(self._durable) >= DURABLE_MAX:
            self._durable.clear()
        self._durable |= self._touched


def _path(folder: pathlib.Path, digest: str) -> pathlib.Path:
    return folder / digests.check(digest)[3:5] / digest


def _look_again(path: pathlib.Path) -> None:
    """Let an NFS client forget that a blob was not there, which it may remember for a minute.

    It asks the server when a folder is opened. A blob that another node has just written must not
    be taken for lost.
    """
    for folder in path.parents[2::-1]:
        with contextlib.suppress(FileNotFoundError):
            os.listdir(folder)  # noqa: PTH208 — in full: an iterator would not begin


def _sync(path: pathlib.Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: pathlib.Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        # What is left behind is hidden and named by no commit: gc finds it.
        return


def _parallel(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do `work` for each item, in threads when there are several; the first error is raised."""
    several = list(items)
    if len(several) <= 1:
        for item in several:
            work(item)
        return
    with concurrent.futures.ThreadPoolExecutor(min(SYNC_THREADS, len(several))) as pool:
        for _ in pool.map(work, several):
            pass
