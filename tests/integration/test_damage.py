"""Stored bytes that were altered are not decoded, and the session wakes as it last was whole."""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis.asyncio
from shared_cluster import Cluster, events

from torpor import client, errors, limits
from torpor.storage import envelope, keyring, keys, records
from torpor.testing import workspaces

Damage = Callable[[bytes], bytes | None]
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


async def _evict(cluster: Cluster, session: client.Session) -> None:
    """Put a session to sleep; its next wake takes nothing from what its node may have kept."""
    await session.evict()
    head = await cluster.head(session)
    workspaces.forget_left(cluster.here.deployment.scratch, head.key)


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


async def _recovered(session: client.Session) -> dict[str, Any]:
    """Return what the history's one recovery says of it."""
    (event,) = [event for event in await events(session) if event.type == "session.recovered"]
    return dict(event.data)


damaged = pytest.mark.parametrize(
    "damage",
    [_flipped, lambda data: data[:-1], lambda data: b"", lambda data: None],
    ids=["flipped", "torn", "empty", "gone"],
)


@damaged
async def test_damaged_state(
    cluster: Cluster, session: client.Session, tmp_path: pathlib.Path, damage: Damage
) -> None:
    """A large state whose blob is damaged is not loaded; the session is as it was a turn before."""
    loaded = tmp_path / "loaded"
    await session.send("self.n = 1; open('f', 'w').write('one')")
    await session.send(
        "class Trap:\n"
        "    def __setstate__(self, state):\n"
        f"        open({str(loaded)!r}, 'a').write('x')\n"
        "self.trap = Trap(); self.trap.n = 1; self.n = 2; open('f', 'w').write('two')\n"
        f"import os; self.large = os.urandom({LARGE})"
    )
    await session.evict()
    head = await cluster.head(session)
    assert not head.checkpoint.inline
    blob = _blob(cluster, head, head.checkpoint.state)
    with _altered(blob, damage(blob.read_bytes())):
        assert (await session.send("return f'{self.n} ' + open('f').read()")).text == "1 one"
    assert not loaded.exists()
    told = await _recovered(session)
    assert (told["from_version"], told["to_version"]) == (head.version, head.version - 1)
    assert told["lost"]["versions"] == [head.version, head.version]
    assert told["quarantined"]["state"] == head.checkpoint.state
    await session.evict()
    assert (await session.send("return str(self.n)")).text == "1"
    await _recovered(session)


@damaged
async def test_only_state_is_damaged(
    cluster: Cluster, session: client.Session, damage: Damage
) -> None:
    """Without a version to go back to the session stays asleep; put right, it goes on."""
    await session.send(f"import os; self.large = os.urandom({LARGE})")
    await _evict(cluster, session)
    head = await cluster.head(session)
    blob = _blob(cluster, head, head.checkpoint.state)
    left = damage(blob.read_bytes())
    with _altered(blob, left):
        error = errors.BlobMissing if left is None else errors.BlobCorrupt
        assert "backup" in (await _refuses(session, error)).message
    assert (await session.send("return str(len(self.large))")).text == str(LARGE)


async def test_damaged_file(cluster: Cluster, session: client.Session) -> None:
    """A file that is damaged in every version is left out and named; all else is there."""
    await session.send("import os; os.mkdir('d'); open('d/f', 'w').write('content'); self.n = 1")
    await session.send("open('d/g', 'w').write('beside'); self.n = 2")
    await _evict(cluster, session)
    head = await cluster.head(session)
    (file,) = [file async for file in session.files.list("d/f")]
    with _altered(_blob(cluster, head, file.digest), b"CONTENT"):
        with pytest.raises(errors.BlobCorrupt):
            await session.files.read("d/f")
        found = await session.send("import os; return f'{self.n} ' + ' '.join(os.listdir('d'))")
        assert found.text == "2 g"
    told = await _recovered(session)
    assert (told["from_version"], told["to_version"]) == (head.version, head.version)
    assert told["lost"] == {"versions": [], "state": False, "files": ["d/f"], "files_total": 1}
    assert [file.path async for file in session.files.list("d")] == ["d/g"]


async def test_damaged_manifest(cluster: Cluster, session: client.Session) -> None:
    """With a damaged list of files the session goes back to the version that has a good one."""
    await session.send("open('f', 'w').write('one'); self.n = 1")
    await session.send("open('f', 'w').write('two'); self.n = 2")
    await _evict(cluster, session)
    head = await cluster.head(session)
    blob = _blob(cluster, head, head.manifest)
    with _altered(blob, _flipped(blob.read_bytes())):
        assert (await session.send("return f'{self.n} ' + open('f').read()")).text == "1 one"
    assert (await _recovered(session))["quarantined"]["manifest"] == head.manifest


async def test_storage_is_not_there(cluster: Cluster, session: client.Session) -> None:
    """Where nothing is mounted all blobs are missing, and that is not damage."""
    await session.send("open('f', 'w').write('one'); self.n = 1")
    await session.send("open('f', 'w').write('two'); self.n = 2")
    await _evict(cluster, session)
    storage = cluster.here.deployment.storage
    aside = storage.with_name("unmounted")
    storage.rename(aside)
    storage.mkdir()
    once = client.Policy(attempts_max=1)
    try:
        async with client.connect(
            cluster.addresses[0], api_key=cluster.here.api_key, policy=once
        ) as impatient:
            await _refuses(impatient.sessions.handle(session.id), errors.StorageUnavailable)
    finally:
        shutil.rmtree(storage)
        aside.rename(storage)
    assert (await session.send("return f'{self.n} ' + open('f').read()")).text == "2 two"


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
    place = keys.checkpoints(head.key)
    async with redis.asyncio.from_url(cluster.here.deployment.store_url) as direct:
        genuine = await direct.lindex(place, 0)
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
            await direct.lset(place, 0, forged)
            refused = await _refuses(session, errors.CheckpointCorrupt)
            assert "signature" in refused.message
        await direct.lset(place, 0, genuine)
    assert (await session.send("return str(self.n)")).text == "1"
