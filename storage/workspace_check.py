"""Whether files hold what is stored of them, where their times cannot tell.

The first write through a memory map shows in a file's times, and none after it until the kernel has
written the page to the disk. So a file that was mapped when it was stored may have changed since,
with the same stamp. One whose stamp is as old as the wake was not: a new map's first write shows.
"""

import pathlib
from collections.abc import Iterator

from torpor.storage import manifest, snapshot, workspace_tree


def holds(
    root: pathlib.Path,
    tree: workspace_tree.Folder,
    since: workspace_tree.Folder,
    *,
    bytes_max: int,
) -> bool:
    """Whether the files in `root` that have other stamps in `tree` than in `since` are as stored.

    To be called once no file is mapped for writing. A file whose times show a change is passed over
    here. False, too, if more than `bytes_max` would have to be read.

    Raises:
        OSError: a file cannot be read.
    """
    left = bytes_max
    for path, entry, stamp in _restamped(root, tree, since):
        try:
            if workspace_tree.stamp_of(path.lstat()) != stamp:
                continue
        except FileNotFoundError:
            continue
        left -= entry.size_bytes
        if left < 0 or snapshot.digest_of_file(path)[0] != entry.digest:
            return False
    return True


def _restamped(
    root: pathlib.Path, tree: workspace_tree.Folder, since: workspace_tree.Folder
) -> Iterator[tuple[pathlib.Path, manifest.Entry, workspace_tree.Stamp]]:
    if tree is since:
        return
    for name, entry in tree.entries.items():
        stamp = tree.stamps.get(name)
        is_file = entry.kind is manifest.Kind.FILE
        # One without a stamp is read at the wake in any case.
        if is_file and stamp is not None and stamp != since.stamps.get(name):
            yield root / name, entry, stamp
    for name, below in tree.folders.items():
        known = since.folders.get(name, workspace_tree.EMPTY)
        yield from _restamped(root / name, below, known)
