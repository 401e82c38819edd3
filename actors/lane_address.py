"""Where a process listens for gateways: an address as text, and the folder of Unix sockets."""

import contextlib
import os
import pathlib
import socket
import stat
import tempfile
from typing import Self

import msgspec

from torpor import errors

#: A field of the head; see `torpor.storage.record_codec`.
TEXT_BYTES_MAX = 64


class LaneAddress(msgspec.Struct, frozen=True, kw_only=True):
    """`host:port`, and `,path` behind it where there is a Unix socket too."""

    host: str
    port: int
    #: Of the Unix socket, for callers on the same node; empty: there is none.
    path: str = ""

    def __str__(self) -> str:
        text = f"{self.host}:{self.port}"
        return f"{text},{self.path}" if self.path else text

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address that `str` wrote.

        Raises:
            InvalidField: it is no such text.
        """
        where, _, path = text.partition(",")
        host, _, port = where.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 1 << 16:
            raise errors.InvalidField(f"{text[:80]!r} is no address of a lane", field="lane")
        return cls(host=host, port=int(port), path=path)


def sockets_folder() -> pathlib.Path:
    """Return where this user's processes put their Unix sockets; paths of such are short."""
    return pathlib.Path(tempfile.gettempdir(), f"torpor-{os.getuid()}", "lanes")


def socket_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return where this process may put a Unix socket, in a folder of its user's alone.

    Raises:
        OSError: it cannot be made, or is somebody else's.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in (folder.parent, folder):
        found = each.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(f"{each} is not a folder of this user")
        if stat.S_IMODE(found.st_mode) & 0o077:
            each.chmod(0o700)
    return folder / f"{os.getpid()}.{name}"


def remove_socket(lane: str) -> None:
    """Remove the Unix socket of a lane whose process is dead, if it had one here."""
    with contextlib.suppress(OSError, errors.InvalidField):
        path = pathlib.Path(LaneAddress.parse(lane).path)
        if path.parent == sockets_folder():
            path.unlink(missing_ok=True)


def clean_leftovers(folder: pathlib.Path) -> None:
    """Remove the sockets of processes that are dead."""
    for path in folder.glob("*.*"):
        pid = path.name.partition(".")[0]
        # A process that lives in another process namespace still accepts connections.
        if pid.isdigit() and not pathlib.Path("/proc", pid).exists() and _refuses(path):
            path.unlink(missing_ok=True)


def _refuses(path: pathlib.Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
