"""Manifests: what a workspace's folders hold, one per folder, named by their hash.

A manifest is msgpack, canonical: the same folder gives the same bytes on every machine. A large
folder is cut into pages, at places that depend on names alone, so that one changed file rewrites
one page and the short index of pages. An empty folder has no manifest: its digest is empty.
"""

import enum
import itertools
import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import msgspec

from torpor import errors
from torpor.storage import blobs, digests

#: Linux allows no longer name.
NAME_BYTES_MAX = 255
#: Linux allows 4096 for a whole path, and the folder that holds the workspace comes before ours.
PATH_BYTES_MAX = 3_072
#: A scan holds one open folder a level, of the 1024 files that a process may usually open.
DEPTH_MAX = 128
#: Linux allows no longer link.
TARGET_BYTES_MAX = 4_095
#: Files, links and folders of one workspace: what describes them takes about 1 KB each in memory.
ENTRIES_MAX = 1_000_000

#: No page is shorter, but a folder's last: so the index has at most 1/64 of the folder's entries.
PAGE_ENTRIES_MIN = 64
_NOTHING: Mapping[str, tuple["Entry", ...]] = MappingProxyType({})
#: A name ends a page when these bits of its hash are 0: 256 entries more on average, about 30 KB.
_PAGE_MASK = 0xFF
#: No page is longer, however the names fall.
PAGE_ENTRIES_MAX = 1_024
#: The longest page, all of longest links, and the index of the largest folder are both below it.
MANIFEST_BYTES_MAX = 8 << 20


class Kind(enum.IntEnum):
    """What an entry is."""

    FILE = 1
    FOLDER = 2
    LINK = 3


class Entry(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One name in a folder."""

    #: As on the disk: Linux names are bytes.
    name: bytes
    kind: Kind
    #: The permission bits, 0o777 at most.
    mode: int
    #: Of a file its size; of a folder that of all files below it; of a link 0.
    size_bytes: int
    #: Of a file's content or a folder's manifest; empty for a link and for an empty folder.
    digest: str = ""
    #: Where a link points to; empty for the others.
    target: bytes = b""


class PageRef(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One page of a large folder."""

    #: The first name in it.
    first: bytes
    digest: str


class Page(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=1):
    """A folder, or a run of a large folder's entries, sorted by name."""

    entries: tuple[Entry, ...]


class Index(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=2):
    """A large folder: its pages, in order."""

    pages: tuple[PageRef, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Page | Index] = msgspec.msgpack.Decoder(Page | Index)


def cut(entries: tuple[Entry, ...]) -> Iterator[tuple[Entry, ...]]:
    """Cut a folder's sorted entries into pages; where it cuts depends on their names alone."""
    start = 0
    while len(entries) - start > PAGE_ENTRIES_MIN:
        end = start + PAGE_ENTRIES_MIN
        last = min(start + PAGE_ENTRIES_MAX, len(entries))
        while end < last and zlib.crc32(entries[end - 1].name) & _PAGE_MASK:
            end += 1
        yield entries[start:end]
        start = end
    if start < len(entries):
        yield entries[start:]


def encode(manifest: Page | Index) -> bytes:
    """Return the one encoding of a manifest."""
    return _encoder.encode(manifest)


def decode(data: bytes) -> Page | Index:
    """Return the manifest that `data` encodes; nothing in it can lead out of its folder.

    Raises:
        BlobCorrupt: it is no manifest, or not one that `encode` made.
    """
    try:
        manifest = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise errors.BlobCorrupt(f"not a manifest: {error}") from error
    if encode(manifest) != data:
        raise errors.BlobCorrupt("the manifest is not encoded in the one way it should be")
    if isinstance(manifest, Page):
        names = [entry.name for entry in manifest.entries]
        for entry in manifest.entries:
            _check_entry(entry)
    else:
        names = [page.first for page in manifest.pages]
        for page in manifest.pages:
            digests.check(page.digest)
    if not names or any(left >= right for left, right in itertools.pairwise(names)):
        raise errors.BlobCorrupt("the manifest is empty, or its names are not in order")
    return manifest


def _check_entry(entry: Entry) -> None:
    name = entry.name
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > NAME_BYTES_MAX:
        raise errors.BlobCorrupt(f"the manifest has an impossible name: {name[:80]!r}")
    if entry.digest or entry.kind is Kind.FILE:
        digests.check(entry.digest)
    is_link = entry.kind is Kind.LINK
    if (
        not 0 <= entry.mode <= 0o777
        or entry.size_bytes < 0
        or is_link != bool(entry.target)
        or (is_link and (entry.digest or entry.size_bytes))
        or len(entry.target) > TARGET_BYTES_MAX
        or b"\0" in entry.target
    ):
        raise errors.BlobCorrupt(f"the manifest's entry {name[:80]!r} makes no sense")


def pages(
    store: blobs.BlobStore,
    tenant: str,
    digest: str,
    *,
    start: bytes = b"",
    known: Mapping[str, tuple[Entry, ...]] = _NOTHING,
) -> Iterator[tuple[str, tuple[Entry, ...]]]:
    """Yield a folder's pages in order, each with its digest, from the one that may hold `start`.

    Only what is asked for is read, and nothing whose digest is among the `known` pages.

    Raises:
        BlobMissing, BlobCorrupt, StorageUnavailable
    """
    if not digest:
        return
    if digest in known:
        yield digest, known[digest]
        return
    manifest = _read(store, tenant, digest)
    if isinstance(manifest, Page):
        yield digest, manifest.entries
        return
    bounds = [page.first for page in manifest.pages[1:]]
    last: bytes = b""
    for page, bound in itertools.zip_longest(manifest.pages, bounds):
        if bound is not None and bound <= start:
            continue
        entries = known.get(page.digest) or _page(store, tenant, page.digest)
        if entries[0].name != page.first:
            raise errors.BlobCorrupt("a page is not what its index says", digest=page.digest)
        if page.first <= last:
            raise errors.BlobCorrupt("the pages overlap", digest=page.digest)
        last = entries[-1].name
        yield page.digest, entries


def find(store: blobs.BlobStore, tenant: str, digest: str, name: bytes) -> Entry | None:
    """Return the entry of this name in a folder, reading one page at most; None if there is none.

    Raises:
        BlobMissing, BlobCorrupt, StorageUnavailable
    """
    for _, entries in pages(store, tenant, digest, start=name):
        return next((entry for entry in entries if entry.name == name), None)
    return None


def _page(store: blobs.BlobStore, tenant: str, digest: str) -> tuple[Entry, ...]:
    content = _read(store, tenant, digest)
    if not isinstance(content, Page):
        raise errors.BlobCorrupt("an index names something that is no page", digest=digest)
    return content.entries


def _read(store: blobs.BlobStore, tenant: str, digest: str) -> Page | Index:
    return decode(store.get(tenant, digest, bytes_max=MANIFEST_BYTES_MAX))
