"""Single files of a workspace: found in what is stored, put into a live folder."""

import errno
import os
import pathlib
from collections.abc import Iterator

import msgspec

from torpor import errors
from torpor.storage import blobs, disk_files, manifest

#: A page of a listing, whatever the client asks for.
LIST_ENTRIES_MAX = 1_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_FOLDER = frozenset({errno.ENOTDIR, errno.ELOOP})


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a listing."""

    #: Relative to the workspace.
    path: str
    entry: manifest.Entry


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a listing: names in the order of their bytes, a folder before its content."""

    items: list[Listed]
    #: Pass it as `after` for the next page; empty when there is none.
    next_after: str


def parts(path: str) -> tuple[str, ...]:
    """Return the names that a client's relative path goes through; `.` and empty ones are left out.

    Raises:
        PathOutsideWorkspace: it is absolute, empty, too long, or has `..` or a NUL in it.
    """
    names = tuple(name for name in path.split("/") if name not in ("", "."))
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise _outside(path, "is not valid text") from error
    if not names:
        raise _outside(path, "names no file")
    if path.startswith("/"):
        raise _outside(path, "is absolute; give it relative to the workspace")
    if ".." in names or "\0" in path:
        raise _outside(path, "leads out of the workspace")
    if (
        len(raw) > manifest.PATH_BYTES_MAX
        or len(names) > manifest.DEPTH_MAX
        or any(len(os.fsencode(name)) > manifest.NAME_BYTES_MAX for name in names)
    ):
        raise _outside(path, "is too long")
    return names


def find(store: blobs.BlobStore, tenant: str, digest: str, path: str) -> manifest.Entry:
    """Return the entry at a path of a stored workspace; reads only the manifests along the path.

    Raises:
        PathOutsideWorkspace: also when the path goes through a link.
        WorkspaceFileNotFound, BlobMissing, BlobCorrupt, StorageUnavailable
    """
    *folders, last = parts(path)
    for name in folders:
        entry = _named(store, tenant, digest, name, path)
        if entry.kind is manifest.Kind.LINK:
            raise _outside(path, f"goes through the link {name!r}")
        if entry.kind is manifest.Kind.FILE:
            raise errors.WorkspaceFileNotFound(f"{path!r} goes through a file", path=path)
        digest = entry.digest
    return _named(store, tenant, digest, last, path)


def _named(
    store: blobs.BlobStore, tenant: str, digest: str, name: str, path: str
) -> manifest.Entry:
    entry = manifest.find(store, tenant, digest, os.fsencode(name))
    if entry is None:
        raise errors.WorkspaceFileNotFound(f"there is no {path!r} in the workspace", path=path)
    return entry


def listing(
    store: blobs.BlobStore,
    tenant: str,
    digest: str,
    path: str = "",
    *,
    recursive: bool = False,
    after: str = "",
    limit: int = LIST_ENTRIES_MAX,
) -> Listing:
    """Return what is in a stored folder, at most `limit` lines, those that follow the path `after`.

    An empty path is the whole workspace; the path of a file or link lists that alone.

    Raises:
        PathOutsideWorkspace, WorkspaceFileNotFound, BlobMissing, BlobCorrupt, StorageUnavailable
    """
    limit = max(1, min(limit, LIST_ENTRIES_MAX))
    begin = tuple(os.fsencode(name) for name in parts(after)) if after else ()
    here: tuple[bytes, ...] = ()
    if path:
        here = tuple(os.fsencode(name) for name in parts(path))
        entry = find(store, tenant, digest, path)
        if entry.kind is not manifest.Kind.FOLDER:
            return Listing(items=[Listed(path=_text(here), entry=entry)], next_after="")
        digest = entry.digest
    items: list[Listed] = []
    for names, entry in _walk(store, tenant, digest, here, begin, recursive=recursive):
        if len(items) == limit:
            return Listing(items=items, next_after=items[-1].path)
        items.append(Listed(path=_text(names), entry=entry))
    return Listing(items=items, next_after="")


def _walk(
    store: blobs.BlobStore,
    tenant: str,
    digest: str,
    here: tuple[bytes, ...],
    after: tuple[bytes, ...],
    *,
    recursive: bool,
) -> Iterator[tuple[tuple[bytes, ...], manifest.Entry]]:
    """Yield what follows the path `after` in a folder, in order; reads what is asked for only."""
    depth = len(here)
    start = after[depth] if after[:depth] == here and len(after) > depth else b""
    for _, entries in manifest.pages(store, tenant, digest, start=start):
        for entry in entries:
            names = (*here, entry.name)
            if entry.name < start:
                continue
            if names > after:
                yield names, entry
            if recursive and entry.kind is manifest.Kind.FOLDER:
                yield from _walk(store, tenant, entry.digest, names, after, recursive=True)


def place(
    root: pathlib.Path, path: str, store: blobs.BlobStore, tenant: str, digest: str, mode: int
) -> int:
    """Put a blob into a live workspace as a file, in place of a file or link; returns its size.

    Folders on the way are made. Every one is opened by name below the one before, never through a
    link, so what a process in the workspace does at the same time cannot lead it elsewhere.

    Raises:
        PathOutsideWorkspace: also when the path goes through a link or a file.
        InvalidField: a folder is there.
        BlobMissing, BlobCorrupt, StorageUnavailable, StorageFull
    """
    *folders, name = parts(path)
    opened: list[int] = []
    try:
        opened.append(os.open(root, _FOLDER))
        for folder in folders:
            opened.append(_step_into(opened[-1], folder, path))
        return _write(opened[-1], name, store.chunks(tenant, digest), mode & 0o777)
    except IsADirectoryError as error:
        raise errors.InvalidField(f"{path!r} is a folder", field="path", path=path) from error
    except OSError as error:
        raise disk_files.storage_error(error, path) from error
    finally:
        for fd in opened:
            os.close(fd)


def _step_into(parent: int, name: str, path: str) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        os.mkdir(name, 0o755, dir_fd=parent)
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in _NO_FOLDER:
            raise _outside(path, f"goes through {name!r}, which is no folder") from error
        raise


def _write(folder: int, name: str, content: Iterator[bytes], mode: int) -> int:
    temporary = f".torpor-{os.urandom(12).hex()}"
    fd = os.open(temporary, _CREATE, 0o600, dir_fd=folder)
    try:
        size = disk_files.write_pieces(fd, content)
        os.fchmod(fd, mode)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise
    finally:
        os.close(fd)
    return size


def _outside(path: str, why: str) -> errors.PathOutsideWorkspace:
    return errors.PathOutsideWorkspace(f"{path[:200]!r} {why}", path=path[:200])


def _text(names: tuple[bytes, ...]) -> str:
    return "/".join(os.fsdecode(name) for name in names)
