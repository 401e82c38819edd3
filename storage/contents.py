"""Reading again what blobs of one tenant hold, each once, and remembering which are named.

What is remembered is 32 bytes a blob, some 120 MB of memory a million.
"""

from collections.abc import Iterator

import msgspec

from torpor import errors
from torpor.storage import blobs, digests, manifest


class Flaw(msgspec.Struct, frozen=True, kw_only=True):
    """A blob that is not what its name says."""

    digest: str
    error: errors.TorporError
    #: Of a file in the workspace; of a folder it ends with a slash.
    path: str


class Contents:
    """What sessions of one tenant name, and whether it is whole.

    Blocks; several threads may use it.
    """

    def __init__(self, store: blobs.BlobStore, tenant: str) -> None:
        self.store = store
        self.tenant = tenant
        self.bytes_read = 0
        #: All that was named so far. What was found whole is not read again.
        self._named: set[bytes] = set()
        self._broken: set[bytes] = set()
        #: Folders that are whole with all below them. A file may hold what is a manifest elsewhere:
        #: that its bytes are right does not say that somebody looked at what they list.
        self._folders: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._named)

    def __contains__(self, digest: str) -> bool:
        return digests.to_bytes(digest) in self._named

    def name(self, digest: str) -> None:
        """Take note of a blob that is named, and was read and found whole."""
        raw = digests.to_bytes(digest)
        self._named.add(raw)
        self._broken.discard(raw)

    def doubt(self, digest: str) -> None:
        """Take note of a blob that is named and not whole; one that is no digest names nothing."""
        if digests.is_one(digest):
            self._broken.add(digests.to_bytes(digest))
            self._named.add(digests.to_bytes(digest))

    def file(self, digest: str) -> None:
        """Read a file, in constant memory, unless it is known to be whole.

        Raises:
            BlobMissing, BlobCorrupt, StorageUnavailable
        """
        raw = digests.to_bytes(digest)
        if raw in self._named and raw not in self._broken:
            return
        for piece in self.store.chunks(self.tenant, digest):
            self.bytes_read += len(piece)
        self.name(digest)

    def folder(self, digest: str, path: str = "", depth: int = 0) -> Iterator[Flaw]:
        """Read a folder's manifest and all below it; yield what is not whole."""
        if not digest or digests.to_bytes(digest) in self._folders:
            return
        whole = True
        try:
            if depth > manifest.DEPTH_MAX:
                raise errors.BlobCorrupt("folders are nested deeper than in any snapshot")
            for page, entries in manifest.pages(self.store, self.tenant, digest):
                self.name(page)
                for flaw in self._entries(entries, path, depth):
                    whole = False
                    yield flaw
            self.name(digest)
        except (errors.DataLoss, errors.StorageUnavailable) as error:
            whole = False
            broken = error.ids.get("digest") or digest
            self.doubt(digest)
            self.doubt(broken)
            yield Flaw(digest=broken, error=error, path=path or "/")
        if whole:
            self._folders.add(digests.to_bytes(digest))

    def _entries(
        self, entries: tuple[manifest.Entry, ...], path: str, depth: int
    ) -> Iterator[Flaw]:
        for entry in entries:
            name = path + entry.name.decode(errors="backslashreplace")
            if entry.kind is manifest.Kind.FOLDER:
                yield from self.folder(entry.digest, name + "/", depth + 1)
            elif entry.kind is manifest.Kind.FILE:
                try:
                    self.file(entry.digest)
                except (errors.DataLoss, errors.StorageUnavailable) as error:
                    self.doubt(entry.digest)
                    yield Flaw(digest=entry.digest, error=error, path=name)
