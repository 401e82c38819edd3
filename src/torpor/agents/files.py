"""Which files of a workspace changed, found by looking at sizes and times only."""

import os
import pathlib

import msgspec

from torpor.agents import output

#: Files looked at before and after each cell; about 50 ms on a slow disk.
SCANNED_MAX = 10_000
#: Files named in one reply; a list of more is for `files.list`.
LISTED_MAX = 100


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """A look at a folder."""

    #: Path below the folder → (time of change in ns, size in bytes, inode).
    files: dict[str, tuple[int, int, int]]
    #: There were more than `SCANNED_MAX`; the others were not looked at.
    truncated: bool


def scan(folder: pathlib.Path) -> Scan:
    """Look at the files below `folder`; links are not followed, bytecode is left out."""
    files: dict[str, tuple[int, int, int]] = {}
    folders = [os.fspath(folder)]
    while folders:
        try:
            entries = sorted(os.scandir(folders.pop()), key=lambda entry: entry.name)
        except OSError:  # a cell's thread or process may remove folders meanwhile
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        folders.append(entry.path)
                    continue
                stat = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if len(files) == SCANNED_MAX:
                return Scan(files=files, truncated=True)
            path = os.path.relpath(entry.path, folder)
            files[path] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return Scan(files=files, truncated=False)


def changed(before: Scan, after: Scan) -> list[dict[str, str | int]]:
    """Return `{"path", "size_bytes"}` of the files that are new or differ, by path."""
    return [
        {"path": output.encodable(path), "size_bytes": facts[1]}
        for path, facts in sorted(after.files.items())
        if before.files.get(path) != facts
    ]
