"""Files on a disk, read and written in constant memory, and what their errors mean."""

import errno
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator

from torpor import errors, limits

#: A whole piece of zeros is not written but skipped, so that sparse files stay sparse.
_ZEROS = bytes(limits.FILE_CHUNK_BYTES)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: O_NONBLOCK: a pipe that took the file's place must not make us wait for its other end.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def storage_error(error: OSError, path: str | pathlib.Path) -> errors.TorporError:
    """Return the error of ours that an `OSError` on our own files stands for."""
    kind = errors.StorageFull if error.errno in _FULL else errors.StorageUnavailable
    return kind(f"{os.fspath(path)!r}: {error.strerror or error}", path=os.fspath(path))


def read_pieces(path: str | pathlib.Path) -> Iterator[bytes]:
    """Yield a regular file's bytes in pieces, up to the size it has when it is opened.

    A file that grows meanwhile does not keep the reader for ever. Links are not followed.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    fd = os.open(path, _READ)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "no regular file any more", os.fspath(path))
        left = status.st_size
        while left > 0 and (piece := os.read(fd, min(left, limits.FILE_CHUNK_BYTES))):
            left -= len(piece)
            yield piece
    finally:
        os.close(fd)


def write_pieces(fd: int, pieces: Iterable[bytes]) -> int:
    """Write pieces into a new, empty file; returns its size in bytes.

    Raises:
        OSError: the disk refuses.
    """
    size, hole = 0, False
    for piece in pieces:
        hole = piece == _ZEROS
        if hole:
            os.lseek(fd, len(piece), os.SEEK_CUR)
        else:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
        size += len(piece)
    if hole:
        os.ftruncate(fd, size)
    return size
