"""The service Workspaces as its clients meet it: real files in a real blob store."""

import os
import pathlib
import time
from collections.abc import AsyncIterator

import pytest

from torpor import errors
from torpor.router import uploads
from torpor.storage import local_blobs, manifest, records
from torpor.testing import served_gateway
from torpor.v1 import agents_pb2, sessions_pb2, workspaces_pb2


@pytest.fixture
async def api(tmp_path: pathlib.Path) -> AsyncIterator[served_gateway.ServedGateway]:
    """A gateway over three nodes, with a sleeping session `s1`."""
    async with served_gateway.serve(tmp_path) as served:
        yield served


async def test_a_file_is_stored_and_handed_to_the_owner(api: served_gateway.ServedGateway) -> None:
    """The content is in the blob store under its hash before the owner hears of it."""
    content = b"x" * 100_000

    async def pieces() -> AsyncIterator[workspaces_pb2.WriteFileRequest]:
        header = workspaces_pb2.WriteFileHeader(session_id="s1", path="a/./b.txt", request_id="w1")
        yield workspaces_pb2.WriteFileRequest(header=header)
        for start in range(0, len(content), 30_000):
            yield workspaces_pb2.WriteFileRequest(data=content[start : start + 30_000])

    written = await api.workspaces.WriteFile(pieces(), metadata=served_gateway.USER)
    assert (written.file.path, written.file.size_bytes) == ("a/b.txt", len(content))
    assert api.cluster.calls[-1] == ("place_file", "a/b.txt")
    blobs = local_blobs.LocalBlobStore(api.place.storage)
    assert blobs.get("acme", written.file.digest, bytes_max=1 << 20) == content
    assert not list((api.place.scratch / "uploads").iterdir())


async def test_an_upload_beyond_the_quota_is_refused(api: served_gateway.ServedGateway) -> None:
    """Nothing reaches the owner, and no temporary file remains."""
    api.cluster.settings = type(api.cluster.settings)(workspace_quota_bytes=10)
    await api.agents.RegisterAgent(
        agents_pb2.RegisterAgentRequest(import_path="examples:Small"), metadata=served_gateway.USER
    )
    await api.sessions.CreateSession(
        sessions_pb2.CreateSessionRequest(agent="small", session_id="s2"),
        metadata=served_gateway.USER,
    )

    async def pieces() -> AsyncIterator[workspaces_pb2.WriteFileRequest]:
        header = workspaces_pb2.WriteFileHeader(session_id="s2", path="a", request_id="w1")
        yield workspaces_pb2.WriteFileRequest(header=header)
        yield workspaces_pb2.WriteFileRequest(data=b"eleven byte")

    error = await served_gateway.refusal(
        api.workspaces.WriteFile(pieces(), metadata=served_gateway.USER)
    )
    assert isinstance(error, errors.WorkspaceQuotaExceeded)
    assert api.cluster.count("place_file") == 0
    assert not list((api.place.scratch / "uploads").iterdir())


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ""])
async def test_no_path_leads_out_of_the_workspace(
    api: served_gateway.ServedGateway, path: str
) -> None:
    """Reading and writing refuse it alike."""
    read = api.workspaces.ReadFile(
        workspaces_pb2.ReadFileRequest(session_id="s1", path=path), metadata=served_gateway.USER
    )
    assert isinstance(await served_gateway.refusal(read.read()), errors.PathOutsideWorkspace)

    async def pieces() -> AsyncIterator[workspaces_pb2.WriteFileRequest]:
        header = workspaces_pb2.WriteFileHeader(session_id="s1", path=path, request_id="w1")
        yield workspaces_pb2.WriteFileRequest(header=header)

    error = await served_gateway.refusal(
        api.workspaces.WriteFile(pieces(), metadata=served_gateway.USER)
    )
    assert isinstance(error, errors.PathOutsideWorkspace)


async def test_an_empty_workspace_lists_nothing_and_wakes_nothing(
    api: served_gateway.ServedGateway,
) -> None:
    """A listing says which version it belongs to; a file that is not there is not found."""
    listed = await api.workspaces.ListFiles(
        workspaces_pb2.ListFilesRequest(session_id="s1"), metadata=served_gateway.USER
    )
    assert not listed.files
    assert listed.version == 1
    read = api.workspaces.ReadFile(
        workspaces_pb2.ReadFileRequest(session_id="s1", path="a"), metadata=served_gateway.USER
    )
    assert isinstance(await served_gateway.refusal(read.read()), errors.WorkspaceFileNotFound)
    assert api.cluster.count("activate") == 0


async def test_files_are_listed_and_read_without_waking(api: served_gateway.ServedGateway) -> None:
    """What the last commit names is what is read, in pages and in pieces; a folder is no file."""
    content = b"0123456789" * 200_000
    with local_blobs.LocalBlobStore(api.place.storage).upload("acme") as upload:
        entries = [
            manifest.Entry(
                name=name,
                kind=manifest.Kind.FILE,
                mode=0o644,
                size_bytes=len(content),
                digest=upload.put(content),
            )
            for name in (b"a.bin", b"b.bin", b"\xff.bin")
        ]
        folder = upload.put(manifest.encode(manifest.Page(entries=tuple(entries))))
        inside = manifest.Entry(
            name=b"sub", kind=manifest.Kind.FOLDER, mode=0o755, size_bytes=1, digest=folder
        )
        root = upload.put(manifest.encode(manifest.Page(entries=(inside,))))
    await api.store.sessions.commit(
        records.Commit(
            key=records.SessionKey("acme", "s1"),
            epoch=0,
            nonce="",
            expected_version=1,
            commit_id="c1",
            manifest=root,
        )
    )
    paths, token = [], ""
    while not paths or token:
        page = await api.workspaces.ListFiles(
            workspaces_pb2.ListFilesRequest(
                session_id="s1", path="sub", page_size=2, page_token=token
            ),
            metadata=served_gateway.USER,
        )
        paths += [file.path for file in page.files]
        token = page.next_page_token
    assert paths == ["sub/a.bin", "sub/b.bin", "sub/?.bin"]
    assert page.version == 2
    read = workspaces_pb2.ReadFileRequest(session_id="s1", path="sub/a.bin")
    first, *rest = [
        item async for item in api.workspaces.ReadFile(read, metadata=served_gateway.USER)
    ]
    assert (first.file.path, first.file.size_bytes) == ("sub/a.bin", len(content))
    assert b"".join(item.data for item in rest) == content
    folder_read = workspaces_pb2.ReadFileRequest(session_id="s1", path="sub")
    error = await served_gateway.refusal(
        api.workspaces.ReadFile(folder_read, metadata=served_gateway.USER).read()
    )
    assert isinstance(error, errors.InvalidField)
    assert api.cluster.count("activate") == 0


def test_what_killed_gateways_left_is_removed(tmp_path: pathlib.Path) -> None:
    """Uploads that nobody finishes go; one that may be under way stays."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    for name, age_s in (("old", 100), ("young", 1)):
        path = folder / name
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    uploads.clear(tmp_path, older_than_s=50)
    assert [path.name for path in folder.iterdir()] == ["young"]
    uploads.clear(tmp_path / "nothing", older_than_s=0)
