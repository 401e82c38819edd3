"""Which folders of a live workspace were left alone, as the kernel tells: inotify(7).

To look at every file at the end of every turn costs milliseconds for each thousand. Here the kernel
tells in which folders a file was opened, made, removed, renamed, or got other permissions. Such a
folder is looked at from then on, turn after turn: what is written through a memory map is not told,
but nobody maps a file without opening it. The others need no look.

Only folders that were there at the beginning are watched. What is made later is looked at each
time. The kernel tells of a change by the name that was used: where files have hard links nothing is
watched, from the turn on at whose end one is found. What is written through one that is not in the
workspace then is not found.
"""

import ctypes
import logging
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Self

from torpor.storage import workspace_tree

log = logging.getLogger(__name__)

#: Names in a workspace below which a look takes less than a few milliseconds. The kernel allows a
#: user 128 watches of this kind by default (`fs.inotify.max_user_instances`).
ENTRIES_MIN = 1_000
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 << 10
_libc = ctypes.CDLL(None, use_errno=True)


# From <sys/inotify.h>.
_MODIFY, _ATTRIB, _CLOSE_WRITE, _OPEN = 0x2, 0x4, 0x8, 0x20
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _Q_OVERFLOW = 0x400, 0x800, 0x4000
_ONLYDIR, _DONT_FOLLOW, _ISDIR = 0x1000000, 0x2000000, 0x40000000
#: What touches a folder.
_TOUCHES = (
    (_MODIFY | _ATTRIB | _CLOSE_WRITE | _OPEN)
    | (_MOVED_FROM | _MOVED_TO | _CREATE | _DELETE)
    | (_DELETE_SELF | _MOVE_SELF)
)


class Watch:
    """What happens below a folder. Blocks shortly; for one thread at a time."""

    def __init__(self, root: pathlib.Path, tree: workspace_tree.Folder) -> None:
        """Begin with `tree`, which is what lies in `root` while nobody has anything of it open.

        Raises:
            OSError: the kernel gives no watch, or not so many.
        """
        #: Names below each folder that is watched, by its path: empty, or ending with a slash.
        self._entries: dict[str, int] = {}
        self._paths: dict[int, str] = {}
        self._touched: set[str] = set()
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            self._add(os.fsencode(root), "", tree)
        except BaseException:
            self.close()
            raise

    @classmethod
    def worth_having(cls, root: pathlib.Path, tree: workspace_tree.Folder) -> Self | None:
        """Return a watch; None if looks are cheap, files have links, or the kernel gives none."""
        if workspace_tree.names_below(tree) < ENTRIES_MIN or workspace_tree.has_links(tree):
            return None
        try:
            return cls(root, tree)
        except OSError as error:
            log.info("no watch: %s", error, extra={"action": "no_watch"})
            return None

    def listen(self) -> None:
        """Take in what the kernel has told by now."""
        try:
            while data := os.read(self._fd, _READ_BYTES):
                for wd, mask in _events(data):
                    self._take(wd, mask)
        except BlockingIOError:
            return

    def left_alone(self, path: str) -> int | None:
        """Return how many names are below a folder that was left alone, with all below it.

        None: it was not, or is none of those that are watched. `path` is relative to the root:
        empty, or ending with a slash.
        """
        return None if path in self._touched else self._entries.get(path)

    def close(self) -> None:
        """Hear nothing more."""
        os.close(self._fd)

    def _add(self, root: bytes, path: str, tree: workspace_tree.Folder) -> int:
        place = os.path.join(root, os.fsencode(path))  # noqa: PTH118 — bytes
        mask = _TOUCHES | _ONLYDIR | _DONT_FOLLOW
        wd = _checked(_libc.inotify_add_watch(self._fd, place, mask))
        self._paths[wd] = path
        below = sum(
            self._add(root, f"{path}{name}/", child) for name, child in tree.folders.items()
        )
        self._entries[path] = len(tree.entries) + below
        return self._entries[path]

    def _take(self, wd: int, mask: int) -> None:
        if mask & _Q_OVERFLOW:
            self._touched.update(self._entries)
        elif mask & _MOVE_SELF:
            # What is below it moves along and does not hear of it; its paths may be others' now.
            moved = self._paths[wd]
            self._touch(moved)
            self._touched.update(path for path in self._entries if path.startswith(moved))
        elif not (mask & _ISDIR and mask & _OPEN):
            # To read which names a folder has, as every look does, changes nothing.
            self._touch(self._paths[wd])

    def _touch(self, path: str) -> None:
        """Take note of a folder and of all that it is in."""
        while path not in self._touched:
            self._touched.add(path)
            path = path[: path.rstrip("/").rfind("/") + 1]


def _events(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each event's watch and what happened; the name of the file, if any, is not needed."""
    at = 0
    while at < len(data):
        wd, mask, _, name_bytes = _EVENT.unpack_from(data, at)
        at += _EVENT.size + name_bytes
        yield wd, mask


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
