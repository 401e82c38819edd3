"""What a session's processes printed, read from the shared storage."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncGenerator
from typing import BinaryIO

from torpor import errors, limits
from torpor.storage import records


def folder(storage: pathlib.Path, key: records.SessionKey) -> pathlib.Path:
    """Return where a session's log files lie; sorted by name they are oldest first."""
    return storage / key.tenant / "logs" / key.session


async def read(logs: pathlib.Path) -> AsyncGenerator[bytes]:
    """Yield the log in pieces of at most `FILE_CHUNK_BYTES`; nothing if there is none.

    Raises:
        StorageUnavailable
    """
    with contextlib.ExitStack() as stack:
        try:
            # All are opened first: a file that is rotated away meanwhile is still read.
            for file in await asyncio.to_thread(_open_all, logs, stack):
                while piece := await asyncio.to_thread(file.read, limits.FILE_CHUNK_BYTES):
                    yield piece
        except OSError as error:
            raise errors.StorageUnavailable(f"the log cannot be read: {error.strerror}") from None


def _open_all(logs: pathlib.Path, stack: contextlib.ExitStack) -> list[BinaryIO]:
    files: list[BinaryIO] = []
    for path in sorted(logs.glob("*.log")):
        with contextlib.suppress(FileNotFoundError):
            files.append(stack.enter_context(path.open("rb")))
    return files
