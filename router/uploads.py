"""Files that clients send, from the stream to the shared storage."""

import asyncio
import contextlib
import pathlib
import tempfile
import time
from collections.abc import AsyncIterator
from typing import IO

from torpor import errors
from torpor.storage import blobs

_FOLDER = "uploads"


async def store(
    pieces: AsyncIterator[bytes],
    blob_store: blobs.BlobStore,
    tenant: str,
    *,
    scratch: pathlib.Path,
    bytes_max: int,
) -> tuple[str, int]:
    """Put a streamed file into the blob store; returns its digest and size in bytes.

    It goes over a file in `scratch`, so that memory does not depend on its size.

    Raises:
        WorkspaceQuotaExceeded: it has more than `bytes_max` bytes.
        StorageFull, StorageUnavailable
    """
    try:
        with await asyncio.to_thread(_temporary, scratch) as file:
            await _receive(pieces, file, bytes_max)
            return await asyncio.to_thread(_upload, blob_store, tenant, pathlib.Path(file.name))
    except OSError as error:
        raise errors.StorageUnavailable(
            f"the gateway cannot write to its scratch folder: {error.strerror}"
        ) from None


def clear(scratch: pathlib.Path, *, older_than_s: float) -> None:
    """Remove what gateways that were killed in the middle of an upload left behind."""
    for path in (scratch / _FOLDER).glob("*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()


def _temporary(scratch: pathlib.Path) -> IO[bytes]:
    folder = scratch / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.NamedTemporaryFile(dir=folder, buffering=0)


async def _receive(pieces: AsyncIterator[bytes], file: IO[bytes], bytes_max: int) -> None:
    size_bytes = 0
    async for piece in pieces:
        size_bytes += len(piece)
        if size_bytes > bytes_max:
            raise errors.WorkspaceQuotaExceeded(
                f"the file has more than the {bytes_max} bytes that the whole workspace may have"
            )
        await asyncio.to_thread(_write_all, file, piece)


def _write_all(file: IO[bytes], piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[file.write(rest) :]


def _upload(blob_store: blobs.BlobStore, tenant: str, path: pathlib.Path) -> tuple[str, int]:
    with blob_store.upload(tenant) as upload:
        return upload.put_file(path)
