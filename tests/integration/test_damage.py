"""Stored bytes that were altered are refused before anything of them is decoded."""

import contextlib
import pathlib
from collections.abc import Iterator

import msgspec
import pytest
import redis.asyncio
from shared_cluster import Cluster, events

from torpor import client, errors, limits
from torpor.storage import envelope, keyring, keys, records

#: A state too large to lie in the store.
LARGE = limits.INLINE_STATE_BYTES_MAX + 1


@contextlib.contextmanager
def _altered(path: pathlib.Path, content: bytes | None) -> Iterator[None]:
    """Give a blob other content, or none at all, for a while."""
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _blob(cluster: Cluster, head: records.Head, digest: str) -> pathlib.Path:
    folder = cluster.here.deployment.storage / head.key.tenant / "blobs"
    (found,) = folder.glob(f"*/{digest}")
    return found


async def _refuses(session: client.Session, error: type[errors.TorporError]) -> errors.TorporError:
    """Assert that waking fails with exactly this error and leaves the session as it was."""
    before = await session.get()
    with pytest.raises(errors.TorporError) as refused:
        await session.send("return 'no'")
    assert type(refused.value) is error
    after = await session.get()
    assert (after.version, after.last_seq, after.resident) == (
        before.version,
        before.last_seq,
        False,
    )
    return refused.value


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (_flipped, errors.BlobCorrupt),
        (lambda data: data[:-1], errors.BlobCorrupt),
        (lambda data: b"", errors.BlobCorrupt),
        (lambda data: None, errors.BlobMissing),
    ],
    ids=["flipped", "torn", "empty", "gone"],
)
async def test_damaged_state(
    cluster: Cluster, session: client.Session, tmp_path: pathlib.Path, damage, error
) -> None:
    """A large state whose blob is damaged is not loaded; put right, the session goes on."""
    loaded = tmp_path / "loaded"
    await session.send(
        "class Trap:\n"
        "    def __setstate__(self, state):\n"
        f"        open({str(loaded)!r}, 'a').write('x')\n"
        "self.trap = Trap(); self.trap.n = 1\n"
        f"import os; self.large = os.urandom({LARGE})"
    )
    await session.evict()
    head = await cluster.head(session)
    assert not head.checkpoint.inline
    blob = _blob(cluster, head, head.checkpoint.state)
    with _altered(blob, damage(blob.read_bytes())):
        await _refuses(session, error)
    assert not loaded.exists()
    assert (await session.send("return str(len(self.large))")).text == str(LARGE)
    assert loaded.exists()


async def test_damaged_file(cluster: Cluster, session: client.Session) -> None:
    """A file whose blob is damaged keeps its session from waking, and the error names the path."""
    await session.send("import os; os.mkdir('d'); open('d/f', 'w').write('content')")
    await session.evict()
    head = await cluster.head(session)
    (file,) = [file async for file in session.files.list("d/f")]
    with _altered(_blob(cluster, head, file.digest), b"CONTENT"):
        refused = await _refuses(session, errors.BlobCorrupt)
        assert "d/f" in refused.message
        with pytest.raises(errors.BlobCorrupt):
            await session.files.read("d/f")
    assert (await session.send("return open('d/f').read()")).text == "content"


async def test_damaged_manifest(cluster: Cluster, session: client.Session) -> None:
    """A damaged list of files keeps its session from waking."""
    await session.send("open('f', 'w').write('content')")
    await session.evict()
    head = await cluster.head(session)
    blob = _blob(cluster, head, head.manifest)
    with _altered(blob, _flipped(blob.read_bytes())):
        await _refuses(session, errors.BlobCorrupt)
    assert (await session.send("return open('f').read()")).text == "content"


async def test_damaged_segment(cluster: Cluster, session: client.Session) -> None:
    """A damaged part of the history is told when it is read, and the session lives on."""
    await session.send(
        f"for i in range({limits.HOT_EVENTS_MAX}): await ctx.emit('test.event', {{'i': i}})"
    )
    await session.evict()
    head = await cluster.head(session)
    blob = _blob(cluster, head, head.cold_index)
    with _altered(blob, _flipped(blob.read_bytes())), pytest.raises(errors.BlobCorrupt):
        await events(session)
    assert (await session.send("return 'fine'")).text == "fine"


async def test_state_of_another_key(cluster: Cluster, session: client.Session) -> None:
    """A state that is signed with another key, or altered in the store, is not loaded."""
    await session.send("self.n = 1")
    await session.evict()
    head = await cluster.head(session)
    assert head.checkpoint.inline
    place = keys.state(head.key)
    async with redis.asyncio.from_url(cluster.here.deployment.store_url) as direct:
        genuine = await direct.get(place)
        mine = keyring.load(cluster.here.deployment.signing_key_file).for_tenant(head.key.tenant)
        _, payload = envelope.open(genuine, head.checkpoint, mine)
        forger = msgspec.structs.replace(mine, keys={mine.signing_id: b"\1" * keyring.KEY_BYTES})
        header = envelope.Header(
            tenant=head.key.tenant,
            origin=head.key.session,
            epoch=head.checkpoint.epoch,
            version=head.checkpoint.version,
            agent=head.agent,
            agent_version=head.agent_version,
        )
        for forged in (envelope.seal(header, bytes(payload), forger), _flipped(genuine)):
            await direct.set(place, forged)
            refused = await _refuses(session, errors.CheckpointCorrupt)
            assert "signature" in refused.message
        await direct.set(place, genuine)
    assert (await session.send("return str(self.n)")).text == "1"
