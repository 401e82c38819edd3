"""The marker of a shared folder: a small file with an id, written once."""

import os
import pathlib

from torpor import ids
from torpor.storage import disk_files

NAME = ".torpor-storage"
#: More than any id has: the file may have been anything.
_ID_BYTES_MAX = 128


def read(root: pathlib.Path) -> str:
    """Return the id; empty when there is no marker.

    Raises:
        StorageUnavailable
    """
    path = root / NAME
    try:
        content = b"".join(disk_files.read_pieces(path))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise disk_files.storage_error(error, path) from error
    return content[:_ID_BYTES_MAX].decode("ascii", errors="replace").strip()


def write(root: pathlib.Path) -> str:
    """Return the id, writing a new one if there is none; of several writers the first one's stays.

    Raises:
        StorageFull, StorageUnavailable
    """
    path, hidden = root / NAME, root / f".{ids.random_id('marker')}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with hidden.open("x") as file:
            file.write(ids.random_id("storage") + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link cannot overwrite, and nobody sees half of it.
            path.hardlink_to(hidden)
        except FileExistsError:
            return read(root)
        finally:
            hidden.unlink()
        _sync(root)
    except OSError as error:
        raise disk_files.storage_error(error, path) from error
    return read(root)


def _sync(folder: pathlib.Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
