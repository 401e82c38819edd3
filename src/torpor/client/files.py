"""The files of a session, as of its last commit."""

import asyncio
import pathlib
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from typing import BinaryIO

from torpor import ids, limits
from torpor.client import connection, decoding, values
from torpor.v1 import workspaces_pb2

#: What the server takes for 0.
DEFAULT_MODE = 0


class Files:
    """`session.files`. Paths are relative to the workspace; reading wakes nothing."""

    def __init__(self, link: connection.Connection, session_id: str) -> None:
        self._link = link
        self._session_id = session_id

    async def list(
        self, path: str = "", *, recursive: bool = False, timeout_s: float | None = None
    ) -> AsyncGenerator[values.FileInfo]:
        """Yield the files of a folder, by path; of the whole workspace if `path` is empty.

        Raises:
            WorkspaceFileNotFound, PathOutsideWorkspace
        """
        token = ""
        while True:
            page = await self._link.call(
                self._link.workspaces.ListFiles,
                workspaces_pb2.ListFilesRequest(
                    session_id=self._session_id, path=path, recursive=recursive, page_token=token
                ),
                timeout_s=timeout_s,
                default_s=connection.READ_TIMEOUT_S,
            )
            for file in page.files:
                yield decoding.file(file)
            token = page.next_page_token
            if not token:
                return

    async def read(self, path: str, *, timeout_s: float | None = None) -> bytes:
        """Return a file's content; it has to fit in memory, `read_to` does without.

        Raises:
            WorkspaceFileNotFound, PathOutsideWorkspace
        """

        async def once(left_s: float) -> bytes:
            return b"".join([piece async for piece in self._pieces(path, left_s)])

        return await self._link.retrying(
            once, timeout_s=timeout_s, default_s=connection.TRANSFER_TIMEOUT_S
        )

    async def read_to(
        self, path: str, local: pathlib.Path, *, timeout_s: float | None = None
    ) -> int:
        """Copy a file to `local`, which appears when it is complete; returns its size in bytes.

        Raises:
            WorkspaceFileNotFound, PathOutsideWorkspace
            OSError: `local` cannot be written.
        """

        async def once(left_s: float) -> int:
            size_bytes = 0
            with _appearing(local) as file:
                async with aclosing(self._pieces(path, left_s)) as pieces:
                    async for piece in pieces:
                        size_bytes += await asyncio.to_thread(file.write, piece)
            return size_bytes

        return await self._link.retrying(
            once, timeout_s=timeout_s, default_s=connection.TRANSFER_TIMEOUT_S
        )

    async def write(
        self,
        path: str,
        content: values.Content,
        *,
        mode: int = DEFAULT_MODE,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> values.Written:
        """Write a file, as a commit of its own; bytes, or the content of a local file.

        Args:
            path: where it goes, in the workspace.
            content: what goes there.
            mode: permission bits; the server's default (0644) for 0.
            request_id: the same id with the same content is written once.
            timeout_s: for everything, retries included.

        Raises:
            PathOutsideWorkspace, WorkspaceQuotaExceeded
            OSError: the local file cannot be read.
        """
        header = workspaces_pb2.WriteFileHeader(
            session_id=self._session_id,
            path=path,
            mode=mode,
            request_id=request_id or ids.random_id("req"),
        )

        async def once(left_s: float) -> workspaces_pb2.WriteFileResponse:
            problems: list[OSError] = []
            requests = _requests(header, content, problems)
            try:
                return await self._link.workspaces.WriteFile(
                    requests, timeout=left_s, metadata=self._link.metadata
                )
            except asyncio.CancelledError:
                # This is how gRPC ends a call whose requests cannot be made.
                if problems:
                    raise problems[0] from None
                raise

        response = await self._link.retrying(
            once, timeout_s=timeout_s, default_s=connection.TRANSFER_TIMEOUT_S
        )
        return values.Written(file=decoding.file(response.file), version=response.version)

    async def _pieces(self, path: str, timeout_s: float) -> AsyncGenerator[bytes]:
        request = workspaces_pb2.ReadFileRequest(session_id=self._session_id, path=path)
        stream = self._link.stream(self._link.workspaces.ReadFile, request, timeout_s=timeout_s)
        async with aclosing(stream) as responses:
            async for response in responses:
                if response.WhichOneof("item") == "data":
                    yield response.data


@contextmanager
def _appearing(local: pathlib.Path) -> Generator[BinaryIO]:
    beside = local.with_name(f".{ids.random_id(local.name)}")
    try:
        with beside.open("xb") as file:
            yield file
        beside.replace(local)
    finally:
        beside.unlink(missing_ok=True)


async def _requests(
    header: workspaces_pb2.WriteFileHeader, content: values.Content, problems: list[OSError]
) -> AsyncGenerator[workspaces_pb2.WriteFileRequest]:
    yield workspaces_pb2.WriteFileRequest(header=header)
    pieces = _cut(content) if isinstance(content, bytes) else _read(content)
    try:
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield workspaces_pb2.WriteFileRequest(data=piece)
    except OSError as error:
        problems.append(error)
        raise
    finally:
        pieces.close()


def _cut(data: bytes) -> Generator[bytes]:
    for start in range(0, len(data), limits.FILE_CHUNK_BYTES):
        yield data[start : start + limits.FILE_CHUNK_BYTES]


def _read(path: pathlib.Path) -> Generator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(limits.FILE_CHUNK_BYTES):
            yield piece
