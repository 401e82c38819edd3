"""A session's files, from outside: listed, read, written, and never outside the workspace."""

import os
import pathlib

import pytest
from shared_cluster import Cluster, events

from torpor import client, errors, messages

#: More than one piece of a stream, and no multiple of one.
LARGE_BYTES = (3 << 20) + 17


async def _paths(session: client.Session, path: str = "", *, recursive: bool = False) -> list[str]:
    return [file.path async for file in session.files.list(path, recursive=recursive)]


async def test_files_are_listed_and_read_asleep(session: client.Session) -> None:
    """A sleeping session's files are those of its last commit, and reading does not wake it."""
    await session.send(
        "import pathlib\n"
        "pathlib.Path('d/e').mkdir(parents=True)\n"
        "pathlib.Path('d/e/f.txt').write_text('deep')\n"
        "pathlib.Path('a.sh').write_text('#!/bin/sh')\n"
        "pathlib.Path('a.sh').chmod(0o755)\n"
        "pathlib.Path('link').symlink_to('a.sh')"
    )
    await session.evict()
    assert await _paths(session) == ["a.sh", "d", "link"]
    assert await _paths(session, "d", recursive=True) == ["d/e", "d/e/f.txt"]
    files = {file.path: file async for file in session.files.list()}
    assert (files["a.sh"].kind, files["a.sh"].mode) == ("regular", 0o755)
    assert (files["link"].kind, files["link"].target) == ("symlink", "a.sh")
    assert await session.files.read("d/e/f.txt") == b"deep"
    with pytest.raises(errors.WorkspaceFileNotFound):
        await session.files.read("d/none")
    info = await session.get()
    assert (info.resident, info.epoch) == (False, 1)


@pytest.mark.parametrize("asleep", [False, True], ids=["resident", "evicted"])
async def test_written_file_reaches_the_agent(
    session: client.Session, tmp_path: pathlib.Path, *, asleep: bool
) -> None:
    """A large file is streamed in, is a commit of its own, and the agent finds it."""
    content = os.urandom(LARGE_BYTES)
    local = tmp_path / "large"
    local.write_bytes(content)
    await session.send("self.n = 1")
    if asleep:
        await session.evict()
    written = await session.files.write("in/large.bin", local, mode=0o600)
    assert (written.file.size_bytes, written.file.mode) == (LARGE_BYTES, 0o600)
    assert await session.files.read("in/large.bin") == content
    reply = await session.send(
        "import blake3, os\n"
        "data = open('in/large.bin', 'rb').read()\n"
        "return f'{self.n} {len(data)} {oct(os.stat(\"in/large.bin\").st_mode)[-3:]}'"
    )
    assert reply.text == f"1 {LARGE_BYTES} 600"
    (event,) = await events(session, messages.WORKSPACE_WRITTEN)
    assert (event.data["path"], event.version) == ("in/large.bin", written.version)


async def test_written_file_survives_eviction(session: client.Session) -> None:
    """A file that a client wrote and the agent changed is both after a sleep."""
    await session.files.write("a", b"first")
    await session.files.write("b", b"other")
    await session.send("open('a', 'a').write(' and more')")
    await session.evict()
    assert (await session.send("return open('a').read() + '|' + open('b').read()")).text == (
        "first and more|other"
    )


@pytest.mark.parametrize("path", ["../f", "d/../../f", "/etc/passwd", "", "a\0b"])
async def test_paths_stay_inside(session: client.Session, path: str) -> None:
    """Paths that lead out are refused, in reading, writing and listing."""
    await session.send("open('f', 'w').write('x')")
    with pytest.raises(errors.PathOutsideWorkspace):
        await session.files.read(path)
    with pytest.raises(errors.PathOutsideWorkspace):
        await session.files.write(path, b"y")
    if path:
        with pytest.raises(errors.PathOutsideWorkspace):
            await _paths(session, path)
    assert await session.files.read("f") == b"x"


async def test_links_lead_nowhere(session: client.Session, tmp_path: pathlib.Path) -> None:
    """Through a link that the agent made, nothing outside is read or written."""
    (tmp_path / "secret").write_text("secret")
    await session.send(
        f"import os; os.symlink({str(tmp_path)!r}, 'out')\n"
        f"os.symlink({str(tmp_path / 'secret')!r}, 'file')"
    )
    for path in ("out/secret", "out/new"):
        with pytest.raises(errors.PathOutsideWorkspace):
            await session.files.read(path)
        with pytest.raises(errors.PathOutsideWorkspace):
            await session.files.write(path, b"y")
    with pytest.raises(errors.InvalidField):
        await session.files.read("file")
    await session.files.write("file", b"inside")
    assert await session.files.read("file") == b"inside"
    assert _names(tmp_path) == ["secret"]
    assert (tmp_path / "secret").read_text() == "secret"


def _names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_quota(cluster: Cluster) -> None:
    """A turn, or a client, that makes the workspace too large is refused; what was there stays."""
    session = await cluster.client.sessions.create("frugal")
    await session.send("open('f', 'w').write('small')")
    with pytest.raises(errors.WorkspaceQuotaExceeded):
        await session.send("open('f', 'w').write('x' * (65 << 10))")
    assert await session.files.read("f") == b"small"
    with pytest.raises(errors.WorkspaceQuotaExceeded):
        await session.files.write("g", b"x" * (65 << 10))
    # Each fits alone, but not both.
    await session.files.write("g", b"x" * (40 << 10))
    with pytest.raises(errors.WorkspaceQuotaExceeded):
        await session.files.write("h", b"x" * (40 << 10))
    assert (await session.send("import os; return ' '.join(sorted(os.listdir()))")).text == "f g"
    await session.delete()
