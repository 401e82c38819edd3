"""The service `torpor.v1.Workspaces`: files as of a session's last commit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from torpor import errors
from torpor.router import call, convert, fields, uploads
from torpor.storage import manifest, workspace_files
from torpor.v1 import workspaces_pb2, workspaces_pb2_grpc

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator

    from torpor.router import activator, interceptors, routing
    from torpor.storage import blobs, store

#: Of a written file, unless the client says otherwise.
MODE_DEFAULT = 0o644
MODE_MAX = 0o777


class WorkspacesService(workspaces_pb2_grpc.WorkspacesServicer):
    """The files of sessions; reading wakes nothing."""

    def __init__(
        self,
        *,
        sessions: store.Sessions,
        blob_store: blobs.BlobStore,
        router: routing.Router,
        wake: activator.Activator,
        scratch: pathlib.Path,
    ) -> None:
        self._sessions = sessions
        self._blobs = blob_store
        self._router = router
        self._activator = wake
        self._scratch = scratch

    async def ListFiles(
        self, request: workspaces_pb2.ListFilesRequest, context: interceptors.Context
    ) -> workspaces_pb2.ListFilesResponse:
        """Return a page of a folder."""
        key = fields.session_key(request.session_id)
        after = convert.path_of_token(request.page_token)
        limit = fields.page_size(
            request.page_size,
            default=workspace_files.LIST_ENTRIES_MAX,
            size_max=workspace_files.LIST_ENTRIES_MAX,
        )
        head = await self._sessions.head(key)
        listing = await asyncio.to_thread(
            workspace_files.listing,
            self._blobs,
            key.tenant,
            head.manifest,
            request.path,
            recursive=request.recursive,
            after=after,
            limit=limit,
        )
        return workspaces_pb2.ListFilesResponse(
            files=[convert.file(item.path, item.entry) for item in listing.items],
            next_page_token=convert.token_of_path(listing.next_after),
            version=head.version,
        )

    async def ReadFile(
        self, request: workspaces_pb2.ReadFileRequest, context: interceptors.Context
    ) -> AsyncIterator[workspaces_pb2.ReadFileResponse]:
        """Stream a file: first what it is, then its content."""
        key = fields.session_key(request.session_id)
        path = "/".join(workspace_files.parts(request.path))
        head = await self._sessions.head(key)
        entry = await asyncio.to_thread(
            workspace_files.find, self._blobs, key.tenant, head.manifest, path
        )
        if entry.kind is not manifest.Kind.FILE:
            raise errors.InvalidField(f"{path!r} is not a file", field="path", path=path)
        yield workspaces_pb2.ReadFileResponse(file=convert.file(path, entry))
        pieces = self._blobs.chunks(key.tenant, entry.digest)
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield workspaces_pb2.ReadFileResponse(data=piece)

    async def WriteFile(
        self,
        request_iterator: AsyncIterator[workspaces_pb2.WriteFileRequest],
        context: interceptors.Context,
    ) -> workspaces_pb2.WriteFileResponse:
        """Store the content, then have the owner put it into the workspace."""
        header = await _header(request_iterator)
        key = fields.session_key(header.session_id)
        path = "/".join(workspace_files.parts(header.path))
        request_id = fields.request_id(header.request_id)
        mode = header.mode or MODE_DEFAULT
        if not 0 < mode <= MODE_MAX:
            raise errors.InvalidField("mode must be permission bits, 0o777 at most", field="mode")
        head = await self._sessions.head(key)
        agent = await self._activator.agent(head)
        digest, size_bytes = await uploads.store(
            _content(request_iterator),
            self._blobs,
            key.tenant,
            scratch=self._scratch,
            bytes_max=agent.settings.workspace_quota_bytes,
        )
        placed = await self._router.place_file(
            key,
            path=path,
            digest=digest,
            size_bytes=size_bytes,
            mode=mode,
            request_id=request_id,
            until=call.until.get(),
        )
        file = workspaces_pb2.File(
            path=path,
            kind=workspaces_pb2.FILE_KIND_REGULAR,
            size_bytes=size_bytes,
            mode=mode,
            digest=digest,
        )
        return workspaces_pb2.WriteFileResponse(file=file, version=placed.version)


async def _header(
    requests: AsyncIterator[workspaces_pb2.WriteFileRequest],
) -> workspaces_pb2.WriteFileHeader:
    async for request in requests:
        if request.HasField("header"):
            return request.header
        break
    raise errors.InvalidField("the first message must be the header", field="header")


async def _content(
    requests: AsyncIterator[workspaces_pb2.WriteFileRequest],
) -> AsyncIterator[bytes]:
    async for request in requests:
        if not request.HasField("data"):
            raise errors.InvalidField("after the header only data may come", field="data")
        yield request.data
