"""Finding what has changed in a workspace on the disk, by looking at names and times alone.

This runs at the end of every turn, over every file that may have changed: the loop over files is
one dict comprehension and one comparison of dicts. The first write through a memory map shows, and
none after it until the kernel has written the page to the disk.
"""

import errno
import os
import pathlib
import stat
from collections.abc import Callable

import msgspec

from torpor import errors
from torpor.storage import manifest, workspace_tree

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: What a file or folder answers that was removed or replaced after its name was read.
VANISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Draft(msgspec.Struct, kw_only=True):
    """A folder that differs from what is stored of it, here or below."""

    #: Relative to the workspace: empty, or ending with a slash.
    path: str
    known: workspace_tree.Folder
    #: Every name that is there now.
    stamps: dict[str, workspace_tree.Stamp]
    #: Names that are new or differ, without folders.
    dirty: list[str]
    #: Names that are stored, but not there any more.
    gone: set[str]
    folders: "dict[str, workspace_tree.Folder | Draft]"
    #: Of all files below it, as far as their status tells.
    size_bytes: int

    def has_links(self) -> bool:
        """Whether a file that differs has other names, too."""
        return workspace_tree.any_linked([self.stamps[name] for name in self.dirty]) or any(
            isinstance(below, Draft) and below.has_links() for below in self.folders.values()
        )


class Scan:
    """One walk over a workspace."""

    def __init__(self, left_alone: Callable[[str], int | None] = lambda _: None) -> None:
        """`left_alone` may know that a folder needs no look; see `workspace_watch`."""
        self._left_alone = left_alone
        #: Names seen so far, with those that needed no look.
        self.entries = 0

    def run(
        self, root: pathlib.Path, known: workspace_tree.Folder
    ) -> workspace_tree.Folder | Draft:
        """Return `known` itself when nothing has changed since, else what has.

        Raises:
            WorkspaceUnreadable: a folder cannot be read.
            WorkspaceQuotaExceeded: too many entries, or too deep.
        """
        if (below := self._left_alone("")) is not None:
            self.entries = below
            return known
        return self._open(os.fspath(root), None, known, "", 0)

    def _open(
        self,
        name: str,
        parent: int | None,
        known: workspace_tree.Folder,
        path: str,
        depth: int,
    ) -> workspace_tree.Folder | Draft:
        fd = os.open(name, _OPEN, dir_fd=parent)
        try:
            return self._folder(fd, known, path, depth)
        finally:
            os.close(fd)

    def _folder(
        self, fd: int, known: workspace_tree.Folder, path: str, depth: int
    ) -> workspace_tree.Folder | Draft:
        stamps = _stamps(fd)
        self.entries += len(stamps)
        _check_bounds(self.entries, path, depth)
        dirty: list[str] = []
        gone: set[str] = set()
        names = list(known.folders)
        if stamps != known.stamps:
            old = known.stamps
            dirty = [name for name, stamp in stamps.items() if old.get(name) != stamp]
            gone = {name for name in known.entries if name not in stamps}
            fresh = [name for name in dirty if name not in known.folders]
            names = [name for name in [*names, *fresh] if _is_folder(stamps.get(name))]
        folders: dict[str, workspace_tree.Folder | Draft] = {}
        for name in names:
            child = known.folders.get(name, workspace_tree.EMPTY)
            # Another folder may have its name by now; then it has another stamp.
            same = stamps.get(name) == known.stamps.get(name)
            if same and (below := self._left_alone(f"{path}{name}/")) is not None:
                self.entries += below
                _check_bounds(self.entries, path, depth)
                folders[name] = child
                continue
            try:
                folders[name] = self._open(name, fd, child, f"{path}{name}/", depth + 1)
            except OSError as error:
                if error.errno not in VANISHED:
                    raise unreadable(f"{path}{name}", error) from error
                del stamps[name]
                gone.add(name)
        changed = [
            name for name, folder in folders.items() if known.folders.get(name) is not folder
        ]
        if not (dirty or gone or changed):
            return known
        draft = Draft(
            path=path,
            known=known,
            stamps=stamps,
            dirty=[name for name in dirty if name not in folders and name in stamps],
            gone=gone & known.entries.keys(),
            folders=folders,
            size_bytes=0,
        )
        draft.size_bytes = _size(draft, changed)
        return draft


def unreadable(path: str, error: OSError) -> errors.WorkspaceUnreadable:
    """Return the error for a file or folder of the workspace that cannot be read."""
    return errors.WorkspaceUnreadable(
        f"{path!r} in the workspace cannot be read ({error.strerror}); "
        "make it readable for its owner, or remove it",
        path=path,
    )


def _size(draft: Draft, changed: list[str]) -> int:
    """Correct the known size by what differs, so that its cost does not grow with the folder."""
    size = draft.known.size_bytes
    for name in {*draft.dirty, *draft.gone, *changed}:
        entry = draft.known.entries.get(name)
        size -= entry.size_bytes if entry else 0
    for name in draft.dirty:
        stamp = draft.stamps[name]
        size += stamp[2] if stat.S_ISREG(stamp[4]) else 0
    return size + sum(draft.folders[name].size_bytes for name in changed)


def _is_folder(stamp: workspace_tree.Stamp | None) -> bool:
    return stamp is not None and stat.S_ISDIR(stamp[4])


def _stamps(fd: int) -> dict[str, workspace_tree.Stamp]:
    stamp_of: Callable[[os.stat_result], workspace_tree.Stamp] = workspace_tree.stamp_of
    try:
        with os.scandir(fd) as items:
            return {item.name: stamp_of(item.stat(follow_symlinks=False)) for item in items}
    except FileNotFoundError:
        # A file vanished between its name and its status. Once more, one by one.
        return _stamps_of_what_stays(fd)


def _stamps_of_what_stays(fd: int) -> dict[str, workspace_tree.Stamp]:
    stamps: dict[str, workspace_tree.Stamp] = {}
    with os.scandir(fd) as items:
        for item in items:
            try:
                stamps[item.name] = workspace_tree.stamp_of(item.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue
    return stamps


def _check_bounds(entries: int, path: str, depth: int) -> None:
    if entries > manifest.ENTRIES_MAX:
        raise errors.WorkspaceQuotaExceeded(
            f"the workspace has more than {manifest.ENTRIES_MAX} files and folders"
        )
    longest = len(os.fsencode(path)) + manifest.NAME_BYTES_MAX
    if depth > manifest.DEPTH_MAX or longest > manifest.PATH_BYTES_MAX:
        raise errors.WorkspaceQuotaExceeded(
            f"the workspace is too deep at {path[:200]!r}: {manifest.DEPTH_MAX} folders in each "
            f"other and {manifest.PATH_BYTES_MAX} bytes of path are allowed",
            path=path[:200],
        )
