"""Content-addressed bytes in shared storage, as a protocol.

A digest is `b3-` and 64 hex digits of BLAKE3: it names the algorithm, and is a file name.
Blobs belong to a tenant, are created once and never changed. A blob is published by the commit that
names it: what no commit names is an orphan.
"""

import pathlib
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self


class Upload(Protocol):
    """Blobs that become durable together.

    As a context manager: on a clean exit every blob put is durable (files, then folders, synced
    once); after an exception nothing is promised and what was half written is removed.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def put(self, data: bytes) -> str:
        """Write bytes; returns their digest.

        Raises:
            StorageFull, StorageUnavailable
        """
        ...

    def put_file(self, source: pathlib.Path) -> tuple[str, int]:
        """Copy a file's present content in constant memory; returns its digest and size in bytes.

        What is hashed is what was copied, also if the file changes meanwhile. Follows no link.

        Raises:
            OSError: the source cannot be read.
            StorageFull, StorageUnavailable
        """
        ...


class BlobStore(Protocol):
    """Where blobs live. All methods block: call them from a thread when on an event loop."""

    @property
    def marker_path(self) -> str:
        """Where the marker is that tells this storage from others, for people."""
        ...

    def marker(self) -> str:
        """Return the id in the marker; empty when there is none.

        Raises:
            StorageUnavailable
        """
        ...

    def mark(self) -> str:
        """Return the id in the marker, after writing one if there is none.

        Raises:
            StorageFull, StorageUnavailable
        """
        ...

    def upload(self, tenant: str) -> Upload:
        """Begin a group of blobs."""
        ...

    def get(self, tenant: str, digest: str, *, bytes_max: int) -> bytes:
        """Return a blob whose hash was checked.

        Raises:
            BlobMissing, BlobCorrupt (also when it is larger than `bytes_max`), StorageUnavailable
        """
        ...

    def chunks(self, tenant: str, digest: str) -> Iterator[bytes]:
        """Yield a blob in pieces of `FILE_CHUNK_BYTES`, and check its hash at the end.

        Raises:
            BlobMissing, BlobCorrupt, StorageUnavailable
        """
        ...

    def exists(self, tenant: str, digest: str) -> bool:
        """Whether the blob is there; its content is not checked."""
        ...
