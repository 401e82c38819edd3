"""An activation at work, over stores that lose answers, go away or turn read-only."""

import os
import pathlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

import torpor
from torpor import deployment, errors, limits, messages
from torpor.actors import lifecycle, protocol
from torpor.storage import local_blobs, memory_store, records, redis_store
from torpor.testing import activations, valkey

Activate = Callable[..., Awaitable[activations.Activation]]


class Adder(torpor.Agent):
    """Adds up the numbers it is sent, and says what went wrong when it cannot."""

    def __init__(self) -> None:
        self.total = 0

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Add; `fail` raises, `print` prints, `big` makes a state for a blob."""
        match message.text:
            case "fail":
                self.total = -1
                raise ValueError("cannot add that")
            case "print":
                print("adding")  # noqa: T201 - this is what is tested
            case "big":
                self.ballast = bytes(64 << 10)
            case number:
                self.total += int(number)
        return str(self.total)


class LossySessions:
    """A store's sessions that carry commits out, or not, and lose the answer."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        #: What befalls the next commit: "before" or "after" it is carried out.
        self.lose: str | None = None
        self.acquires = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def acquire(self, claim: records.Acquire, **how: Any) -> records.Acquired:
        """Carry it out; the first answer after a lost commit is lost, too."""
        self.acquires += 1
        acquired = await self._inner.acquire(claim, **how)
        if self.lose is not None:
            self.lose = None
            raise errors.StoreUnavailable
        return acquired

    async def commit(self, commit: records.Commit) -> records.Committed:
        """Carry it out unless it is to be lost before."""
        if self.lose == "before":
            raise errors.OutcomeUnknown
        committed = await self._inner.commit(commit)
        if self.lose == "after":
            raise errors.OutcomeUnknown
        return committed


@pytest.fixture
def store() -> memory_store.MemoryStore:
    """A store in memory whose sessions can lose answers."""
    made = memory_store.MemoryStore()
    made.sessions = LossySessions(made.sessions)
    return made


@pytest.fixture
async def activate(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Activate]:
    """Yield a function that activates a new session of an `Adder` on a store."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    made = []

    async def one(
        stored: Any, *, key: records.SessionKey | None = None, **how: Any
    ) -> activations.Activation:
        key = key or await activations.new_session(stored)
        made.append(await activations.activate(stored, key, Adder, tmp_path, **how))
        return made[-1]

    yield one
    for activation in made:
        await activation.close()


async def _types(stored: Any, key: records.SessionKey) -> list[str]:
    return [event.type for event in (await stored.sessions.hot(key, after=0, limit=100)).events]


async def test_turns_are_committed_before_they_are_answered(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """Each reply is in the store when it is returned; the wake is told once."""
    here = await activate(store)
    first, second = await here.send("1"), await here.send("2")
    assert (first.text, second.text) == ("1", "3")
    head = await store.sessions.head(here.owned.head.key)
    assert (head.version, head.next_seq) == (second.version, second.seq + 1)
    assert head == here.owned.head
    assert await _types(store, head.key) == [
        messages.SESSION_CREATED,
        messages.SESSION_WOKEN,
        *(messages.USER_MESSAGE, messages.AGENT_MESSAGE) * 2,
    ]
    assert here.reader.read().turns == 2


async def test_failed_turn_ends_the_activation(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """The error is committed without state or files, and the owner is cleared."""
    here = await activate(store)
    await here.send("1")
    before = here.owned.head
    failed = await here.send("fail")
    assert failed.error is not None
    assert failed.error.reason == errors.TurnFailed.reason
    await here.ended()
    head = await store.sessions.head(before.key)
    assert (head.owner, head.version) == (None, before.version + 1)
    assert (head.checkpoint, head.manifest) == (before.checkpoint, before.manifest)
    with pytest.raises(errors.Fenced):
        here.put(protocol.DrainInbox())


async def test_lost_answer_of_a_commit_that_landed(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """The turn is answered, once; the process ends, for callers know it by another epoch."""
    here = await activate(store)
    await here.send("1")
    store.sessions.lose = "after"
    reply = await here.send("2", "lost")
    assert reply.text == "3"
    await here.ended()
    head = await store.sessions.head(here.owned.head.key)
    assert (head.owner, head.version, head.epoch) == (None, reply.version, 2)
    assert store.sessions.acquires == 3
    assert (await _types(store, head.key)).count(messages.AGENT_MESSAGE) == 2


async def test_lost_answer_of_a_commit_that_did_not_land(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """The turn is refused as not committed, and can never be: the session is as before it."""
    here = await activate(store)
    await here.send("1")
    before = await store.sessions.head(here.owned.head.key)
    store.sessions.lose = "before"
    with pytest.raises(errors.StoreUnavailable):
        await here.send("2")
    await here.ended()
    head = await store.sessions.head(before.key)
    assert (head.owner, head.version, head.epoch) == (None, before.version, 2)


async def test_fenced_owner_writes_nothing_more(
    store: memory_store.MemoryStore, activate: Activate, tmp_path: pathlib.Path
) -> None:
    """Once another activation has the session, a turn here is refused and leaves no trace."""
    here = await activate(store)
    await here.send("1")
    key = here.owned.head.key
    other, _ = await activations.claim(store, local_blobs.LocalBlobStore(tmp_path), key)
    with pytest.raises(errors.Fenced):
        await here.send("2")
    await here.ended()
    head = await store.sessions.head(key)
    assert (head.epoch, head.nonce, head.version) == (2, other.head.nonce, other.head.version)


async def test_message_that_waited_too_long_is_not_begun(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """A message whose caller has given up is dropped; the next one runs."""
    here = await activate(store)
    late = here.put(
        protocol.Deliver(
            epoch=1,
            message=messages.Message(text="5", request_id="late"),
            body_digest="5",
            busy=protocol.BusyPolicy.ENQUEUE,
            deadline_s=0.0,
        ),
        deadline_s=0.0,
    )
    with pytest.raises(errors.DeadlineExceeded):
        protocol.accept(await late)
    assert (await here.send("1")).text == "1"


async def test_leaving_handles_what_arrives(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """An owner that is asked to leave while its inbox holds something handles that first."""
    here = await activate(store)
    await here.send("1")
    key = here.owned.head.key
    message = messages.Message(text="2", request_id="posted")
    await store.sessions.enqueue(key, records.InboxItem(message=message, body_digest="2", at_ms=0))
    protocol.accept(await here.put(protocol.Leave(epoch=1)))
    await here.ended()
    head = await store.sessions.head(key)
    assert (head.owner, await store.sessions.inbox(key)) == (None, [])
    assert (await _types(store, key)).count(messages.AGENT_MESSAGE) == 2
    assert here.reader.read().phase is lifecycle.Phase.ENDED


async def test_same_file_request_is_written_once(
    store: memory_store.MemoryStore, activate: Activate, tmp_path: pathlib.Path
) -> None:
    """A file that is placed again with its request id makes no second commit."""
    here = await activate(store)
    with local_blobs.LocalBlobStore(tmp_path).upload(activations.KEYS.tenant) as upload:
        digest = upload.put(b"content")
    place = protocol.PlaceFile(
        epoch=1,
        path="f",
        digest=digest,
        size_bytes=7,
        mode=0o644,
        request_id="write",
        deadline_s=60.0,
    )
    first = protocol.accept(await here.put(place))
    again = protocol.accept(await here.put(place))
    assert first == again
    assert (here.workspace / "f").read_bytes() == b"content"
    assert (await _types(store, here.owned.head.key)).count(messages.WORKSPACE_WRITTEN) == 1


async def test_printed_text_is_of_its_turn(
    store: memory_store.MemoryStore, activate: Activate
) -> None:
    """What a turn prints is committed with it, and with no other."""
    here = await activate(store)
    await here.send("print")
    await here.send("1")
    happened = (await store.sessions.hot(here.owned.head.key, after=0, limit=100)).events
    (printed,) = [event for event in happened if event.type == messages.AGENT_OUTPUT]
    assert (printed.data, printed.version) == ({"stdout": "adding\n"}, 2)


# --- a real server, a real disk -------------------------------------------------------------------


@pytest.fixture
async def server_store(
    own_store_server: valkey.Server, tmp_path: pathlib.Path
) -> AsyncIterator[redis_store.RedisStore]:
    """A store on a server that the test may kill."""
    opened = redis_store.open(
        deployment.Deployment(
            store_url=own_store_server.url,
            storage=tmp_path,
            scratch=tmp_path,
            signing_key_file=tmp_path,
        )
    )
    yield opened
    await opened.close()


async def test_store_gone_in_the_middle(
    own_store_server: valkey.Server, server_store: redis_store.RedisStore, activate: Activate
) -> None:
    """The server dies: the turn is refused, the activation ends; back again, nothing is lost."""
    here = await activate(server_store)
    reply = await here.send("1")
    own_store_server.kill()
    with pytest.raises(errors.Unavailable):
        await here.send("2")
    await here.ended()
    own_store_server.start()
    head = await server_store.sessions.head(here.owned.head.key)
    assert (head.version, head.next_seq) == (reply.version, reply.seq + 1)


async def test_store_restarts_between_turns(
    own_store_server: valkey.Server, server_store: redis_store.RedisStore, activate: Activate
) -> None:
    """The server restarts while nothing is under way: the same activation goes on."""
    here = await activate(server_store)
    await here.send("1")
    own_store_server.restart()
    assert (await here.send("2")).text == "3"


async def test_store_turns_read_only(
    own_store_server: valkey.Server, server_store: redis_store.RedisStore, activate: Activate
) -> None:
    """A server that became a replica refuses the commit: the turn fails and changes nothing."""
    here = await activate(server_store)
    await here.send("1")
    own_store_server.call("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(errors.StoreReadOnly):
        await here.send("2")
    await here.ended()
    own_store_server.call("REPLICAOF", "NO", "ONE")
    head = await server_store.sessions.head(here.owned.head.key)
    assert (head.version, head.usage.turns) == (here.owned.head.version, 1)


async def test_storage_full(
    store: memory_store.MemoryStore, activate: Activate, full_disk: pathlib.Path
) -> None:
    """No room for a turn's files: the turn is refused as such, and nothing is committed."""
    here = await activate(store, blob_store=local_blobs.LocalBlobStore(full_disk))
    await here.send("1")
    before = await store.sessions.head(here.owned.head.key)
    (here.workspace / "large").write_bytes(os.urandom(2 << 20))
    with pytest.raises(errors.StorageFull):
        await here.send("2")
    await here.ended()
    head = await store.sessions.head(before.key)
    assert (head.version, head.manifest, head.owner) == (before.version, before.manifest, None)


async def test_full_storage_gives_no_message_up(
    store: memory_store.MemoryStore, activate: Activate, full_disk: pathlib.Path
) -> None:
    """However often a good message meets a full disk, it waits, and is not given up."""
    key = await activations.new_session(store)
    (full_disk / "ballast").write_bytes(bytes(2 << 20)[: _room(full_disk)])
    message = messages.Message(text="2", request_id="posted")
    await store.sessions.enqueue(key, records.InboxItem(message=message, body_digest="2", at_ms=0))
    for _ in range(limits.FRUITLESS_CLAIMS_MAX + 2):
        here = await activate(store, key=key, blob_store=local_blobs.LocalBlobStore(full_disk))
        (here.workspace / "new").write_bytes(os.urandom(64 << 10))
        with pytest.raises(errors.StorageFull):
            protocol.accept(await here.put(protocol.DrainInbox()))
        await here.ended()
    assert len(await store.sessions.inbox(key)) == 1
    assert messages.AGENT_ERROR not in await _types(store, key)


def _room(disk: pathlib.Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


@pytest.fixture
def full_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system that is full after 1 MiB; a skip where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    yield disk
    subprocess.run(["umount", disk], check=True)
