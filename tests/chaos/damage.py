"""Blobs of shared storage that one version of one session needs, and nobody else."""

import enum
import pathlib
from collections.abc import Iterator

import msgspec

from torpor.storage import digests, local_blobs, manifest, records


class Kind(enum.StrEnum):
    """What a blob holds."""

    STATE = "state"
    MANIFEST = "manifest"
    FILE = "file"


class Damaged(msgspec.Struct, frozen=True, kw_only=True):
    """A session that cannot be brought back as it was."""

    key: records.SessionKey
    #: The version that cannot.
    version: int
    #: The newest one that can; 0 if there is none.
    whole: int
    kind: Kind
    #: The blob.
    digest: str


def own(
    root: pathlib.Path, tenant: str, points: list[records.RestorePoint]
) -> list[tuple[Kind, str]]:
    """Return the blobs of a session's newest version that the versions before it do not need.

    What a witness stores has its tokens in it, or is signed for it: no other session has the same.

    Args:
        root: the shared storage.
        tenant: whose session it is.
        points: what a wake could go back to, the newest version first.

    Raises:
        BlobMissing, BlobCorrupt: there is damage already.
    """
    store = local_blobs.LocalBlobStore(root)
    newest, *before = points
    shared = {digest for point in before for _, digest in _named(store, tenant, point)}
    return sorted({item for item in _named(store, tenant, newest) if item[1] not in shared})


def path(root: pathlib.Path, tenant: str, digest: str) -> pathlib.Path:
    """Return where a blob lies."""
    return root / tenant / "blobs" / digests.check(digest)[3:5] / digest


def _named(
    store: local_blobs.LocalBlobStore, tenant: str, point: records.RestorePoint
) -> Iterator[tuple[Kind, str]]:
    if point.checkpoint is not None and not point.checkpoint.inline:
        yield Kind.STATE, point.checkpoint.state
    yield from _below(store, tenant, point.manifest)


def _below(
    store: local_blobs.LocalBlobStore, tenant: str, folder: str
) -> Iterator[tuple[Kind, str]]:
    if folder:
        yield Kind.MANIFEST, folder
    for page, entries in manifest.pages(store, tenant, folder):
        yield Kind.MANIFEST, page
        for entry in entries:
            if entry.kind is manifest.Kind.FOLDER:
                yield from _below(store, tenant, entry.digest)
            elif entry.kind is manifest.Kind.FILE:
                yield Kind.FILE, entry.digest
