"""A workspace's folders as they were on the disk when their content was last known to be stored.

With it the next snapshot reads nothing but what has changed since.
"""

import operator
import os
from collections.abc import Callable, Collection, Iterable

import msgspec

from torpor.storage import manifest

#: A file whose inode changed this recently may change again without its times showing it: two ticks
#: of the slowest kernel clock (100 Hz). It is read again next time.
RACY_NS = 20_000_000

#: What a changed file cannot keep: mtime, ctime (ns), size, inode, mode, links.
Stamp = tuple[int, int, int, int, int, int]
stamp_of: Callable[[os.stat_result], Stamp] = operator.attrgetter(
    "st_mtime_ns", "st_ctime_ns", "st_size", "st_ino", "st_mode", "st_nlink"
)


class StoredPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a stored folder."""

    entries: tuple[manifest.Entry, ...]
    digest: str
    #: Of all files in it and below it.
    size_bytes: int


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder on the disk and what is stored of it. Never changed once made."""

    #: By name; None for one that has to be read again.
    stamps: dict[str, Stamp | None]
    #: What is stored, by name.
    entries: dict[str, manifest.Entry]
    folders: dict[str, "Folder"]
    pages: tuple[StoredPage, ...]
    #: Of the folder's manifest.
    digest: str
    #: Of all files below it.
    size_bytes: int


#: What a new, empty workspace is equal to.
EMPTY = Folder(stamps={}, entries={}, folders={}, pages=(), digest="", size_bytes=0)

_name = operator.attrgetter("name")
#: Of a stamp.
_links: Callable[[Stamp], int] = operator.itemgetter(5)


def settled(stamp: Stamp, now_ns: int) -> Stamp | None:
    """Return a stamp that later changes are sure to alter, or None for one too fresh to tell.

    `now_ns` is a time at which the content had not been read yet, or nobody could have changed it.
    """
    return stamp if stamp[1] < now_ns - RACY_NS else None


def names_below(folder: Folder) -> int:
    """Count the files, links and folders in a folder and below it."""
    return len(folder.entries) + sum(map(names_below, folder.folders.values()))


def any_linked(stamps: Collection[Stamp]) -> bool:
    """Whether one of these, none a folder's, has hard links, and so may change by another name."""
    return sum(map(_links, stamps)) > len(stamps)


def has_links(folder: Folder) -> bool:
    """Whether `any_linked` is so of what is below a folder."""
    below = folder.folders
    stamps = [stamp for name, stamp in folder.stamps.items() if stamp and name not in below]
    return any_linked(stamps) or any(map(has_links, below.values()))


def paginate(
    entries: Iterable[manifest.Entry], known: Folder, put: Callable[[bytes], str]
) -> tuple[tuple[StoredPage, ...], str]:
    """Return a folder's pages and its manifest's digest; puts what `known` does not have yet."""
    by_first = {page.entries[0].name: page for page in known.pages}
    pages: list[StoredPage] = []
    for run in manifest.cut(tuple(sorted(entries, key=_name))):
        page = by_first.get(run[0].name)
        if page is None or page.entries != run:
            page = StoredPage(
                entries=run,
                digest=put(manifest.encode(manifest.Page(entries=run))),
                size_bytes=sum(entry.size_bytes for entry in run),
            )
        pages.append(page)
    return tuple(pages), _folder_digest(tuple(pages), known, put)


def _folder_digest(
    pages: tuple[StoredPage, ...], known: Folder, put: Callable[[bytes], str]
) -> str:
    if not pages:
        return ""
    if len(pages) == 1:
        return pages[0].digest
    if pages == known.pages:
        return known.digest
    refs = tuple(manifest.PageRef(first=page.entries[0].name, digest=page.digest) for page in pages)
    return put(manifest.encode(manifest.Index(pages=refs)))
