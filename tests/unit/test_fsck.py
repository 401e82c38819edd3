"""What `torpor fsck` finds and mends, on a real store and real files."""

import asyncio
import pathlib
from collections.abc import Callable

import pytest

from torpor import errors, limits, messages
from torpor.storage import (
    findings,
    keyring,
    keys,
    records,
    segments,
)
from torpor.testing import activations, store_samples
from torpor.testing.stored_world import StoredWorld

What = findings.What
#: Enough for some checks to begin and end while the session works.
TURNS = 40


@pytest.fixture
def world(empty_world: StoredWorld) -> StoredWorld:
    """An empty deployment."""
    return empty_world


async def test_a_healthy_deployment_has_no_finding(world: StoredWorld) -> None:
    """Files, folders, states of both kinds, cold history, an inbox, an owner: all is in order."""
    head = await world.session("write a one", "large", "write sub/b two", *["next"] * 40)
    assert head.cold_index
    asleep = await activations.new_session(world.store)
    await world.store.wake.ensure(asleep)
    await world.store.sessions.enqueue(asleep, store_samples.item("r"))
    awake = await world.activate()
    await awake.send("write c three")
    await world.store.nodes.claim_lease("node-1", "inc-1", ttl_ms=60_000)
    assert await world.check() == []
    assert (world.summary.sessions, world.summary.tenants) == (3, 1)
    assert world.summary.blobs > 5
    await world.store.nodes.drop_lease("node-1", "inc-1")
    (lost,) = await world.check()
    assert (lost.what, lost.remains) == (What.OWNER_LAPSED, False)
    await awake.close()


def _flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _of_file(world: StoredWorld, head: records.Head) -> pathlib.Path:
    return world.holding(b"two")


def _of_folder(world: StoredWorld, head: records.Head) -> pathlib.Path:
    return world.blob(head.manifest)


def _of_state(world: StoredWorld, head: records.Head) -> pathlib.Path:
    assert head.checkpoint is not None
    return world.blob(head.checkpoint.state)


def _of_index(world: StoredWorld, head: records.Head) -> pathlib.Path:
    return world.blob(head.cold_index)


def _of_segment(world: StoredWorld, head: records.Head) -> pathlib.Path:
    (entry,) = segments.read_index(world.blob_store, "acme", head.cold_index)
    return world.blob(entry.digest)


@pytest.mark.parametrize("harm", [_flip, _truncate, pathlib.Path.unlink])
@pytest.mark.parametrize(
    ("which", "kind"),
    [
        (_of_file, "blob"),
        (_of_folder, "blob"),
        (_of_state, "checkpoint"),
        (_of_index, "segment"),
        (_of_segment, "segment"),
    ],
)
async def test_damaged_blobs(
    world: StoredWorld,
    which: Callable[[StoredWorld, records.Head], pathlib.Path],
    kind: str,
    harm: Callable[[pathlib.Path], None],
) -> None:
    """Each kind of blob, altered, torn or gone, is found; a good one can take its place."""
    head = await world.session("write a one", "write sub/b two", *["next"] * 40, "large")
    path = which(world, head)
    good = path.read_bytes()
    harm(path)
    expected = f"{kind}-missing" if harm is pathlib.Path.unlink else f"{kind}-corrupt"
    for repair in (False, True):
        found = [one for one in await world.check(repair=repair) if one.remains]
        assert {(one.what, one.where) for one in found} == {(expected, path.name)}
        assert all(one.session == head.key.session and not one.repaired for one in found)
    assert not path.exists()
    aside = list(world.storage.glob(f"acme/quarantine/corrupt/{path.name}.*"))
    assert len(aside) == ("corrupt" in expected)
    with world.blob_store.upload("acme") as upload:
        assert upload.put(good) == path.name
    assert await world.check() == []


async def test_the_finding_says_where_a_wake_goes_back_to(world: StoredWorld) -> None:
    """With damage to the newest state alone, the version before it is what a wake restores."""
    head = await world.session("large", "large", "large")
    assert head.checkpoint is not None
    points = await world.store.sessions.restore_points(head.key)
    _flip(world.blob(head.checkpoint.state))
    (found,) = [one for one in await world.check() if one.remains]
    assert f"goes back to version {points[1].version}" in found.message
    for point in points[1:]:
        assert point.checkpoint is not None
        world.blob(point.checkpoint.state).unlink()
    found, *_ = [one for one in await world.check() if one.remains]
    assert "from a copy" in found.message


@pytest.mark.parametrize("which", [_of_folder, _of_state])
async def test_the_next_wake_ends_the_finding(
    world: StoredWorld, which: Callable[[StoredWorld, records.Head], pathlib.Path]
) -> None:
    """What was told of a wake comes true; afterwards everything is whole, with what was moved."""
    head = await world.session("large", "write a one", "large", "write sub/b two", "large")
    _flip(which(world, head))
    (found,) = [one for one in await world.check(repair=True) if one.remains]
    here = await world.activate(head.key)
    (event,) = [
        event
        for event in (await world.store.sessions.hot(head.key, after=0, limit=99)).events
        if event.type == messages.SESSION_RECOVERED
    ]
    said = found.message.split("; ")[1]
    assert said.startswith("the next wake")
    assert f"version {event.data['to_version']}" in said
    assert findings.Severity.DAMAGE not in {one.severity for one in await world.check()}
    for _ in range(limits.RESTORE_POINTS_MAX):
        await here.send("next")
    await here.close()
    assert await world.names() == ["owner-lapsed"]


async def test_a_file_that_no_version_has_whole_is_left_out(world: StoredWorld) -> None:
    """A damaged file of all versions is told once, and that the next wake does without it."""
    head = await world.session("write a one", *["next"] * 6)
    _flip(world.holding(b"one"))
    (found,) = [one for one in await world.check() if one.remains]
    assert f"restores version {head.version} without what is damaged" in found.message
    assert "'a'" in found.message


async def test_states_signed_with_another_key(world: StoredWorld) -> None:
    """The key file is what is wrong then: no wake goes back, and nothing is moved."""
    head = await world.session("large")
    others = keyring.Keyring({"k2": b"\2" * keyring.KEY_BYTES})
    (found,) = [one for one in await world.check(repair=True, masters=others) if one.remains]
    assert (found.what, "key" in found.message) == (What.CHECKPOINT_UNVERIFIED, True)
    assert head.checkpoint is not None
    assert found.where == head.checkpoint.state
    assert await world.check() == []


async def test_what_cannot_be_read_is_not_taken_for_missing(world: StoredWorld) -> None:
    """A blob that the storage refuses to read is told as that, and no wake goes back for it."""
    head = await world.session("write a one", "write b two")
    for content in (b"one", b"two"):
        path = world.holding(content)
        path.rename(path.with_suffix(".moved"))
        path.symlink_to(path.with_suffix(".moved"))
    assert await world.names() == ["blob-unreadable", "blob-unreadable", "orphans-unjudged"]
    assert all("will not wake" in one.message for one in await world.check() if one.remains)
    with pytest.raises(errors.StorageUnavailable):
        await world.activate(head.key)
    assert (await world.store.sessions.head(head.key)).version == head.version


async def test_a_session_that_never_holds_still_is_left_to_another_run(
    world: StoredWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage that was seen once, in a session that went on since, is not told as damage."""
    head = await store_samples.owned(world.store, records.SessionKey("acme", "busy"))
    await world.store.nodes.claim_lease("node-1", "inc-1", ttl_ms=60_000)
    restore_points = world.store.sessions.restore_points

    async def moving(key: records.SessionKey) -> list[records.RestorePoint]:
        points = await restore_points(key)
        now = await world.store.sessions.head(key)
        await world.store.sessions.commit(store_samples.commit(now))
        return points

    await world.redis("XDEL", keys.hot(head.key), "1-0")
    monkeypatch.setattr(world.store.sessions, "restore_points", moving)
    assert await world.names() == ["session-busy"]
    monkeypatch.undo()
    assert await world.names() == ["history-gap"]


async def test_damage_in_the_store(world: StoredWorld) -> None:
    """Events, messages that wait, states and heads that are not as they were written are told."""
    asleep = await activations.new_session(world.store)
    await world.store.wake.ensure(asleep)
    await world.store.sessions.enqueue(asleep, store_samples.item("r"))
    await world.redis("HDEL", keys.dedup(asleep), "r")
    assert await world.names() == ["inbox-unremembered"]
    await world.redis("LSET", keys.inbox(asleep), 0, b"r\0nonsense")
    assert set(await world.names()) == {"inbox-unremembered", "inbox-corrupt"}
    await world.store.sessions.delete(asleep)
    head = await world.session("one", "two")
    await world.redis("DEL", keys.checkpoints(head.key))
    assert await world.names() == ["checkpoint-missing"]
    await world.store.sessions.delete(head.key)
    head = await world.session("one", "two")
    await world.redis("XDEL", keys.hot(head.key), "3-0")
    (gap,) = await world.check()
    assert (gap.what, gap.where) == (What.HISTORY_GAP, "3")
    await world.redis("XDEL", keys.hot(head.key), f"{head.next_seq - 1}-0")
    assert await world.names() == ["history-gap"]
    await world.store.sessions.delete(head.key)
    head = await world.session("one", "two")
    await world.redis("HSET", keys.head(head.key), "h", 2)
    assert set(await world.names()) == {"head-inconsistent", "history-gap"}
    await world.redis("HSET", keys.head(head.key), "k", b"nonsense")
    (found,) = [one for one in await world.check() if one.remains]
    assert (found.what, found.session) == (What.HEAD_UNREADABLE, head.key.session)


async def test_indexes_are_rebuilt(world: StoredWorld) -> None:
    """Entries without a session go, sessions without one and work without a hint get theirs."""
    lost, waiting = [await activations.new_session(world.store) for _ in range(2)]
    await world.store.sessions.enqueue(waiting, store_samples.item("r"))
    await world.redis("ZREM", keys.sessions("acme"), lost.session)
    await world.redis("ZADD", keys.sessions("acme"), 5, "ghost")
    expected = {
        ("index-missing", lost.session),
        ("index-stale", "ghost"),
        ("hint-missing", waiting.session),
    }
    for repair in (False, True):
        found = await world.check(repair=repair)
        assert {(one.what, one.session) for one in found} == expected
        assert all(one.repaired is repair for one in found)
        assert world.summary.remaining == (0 if repair else 3)
    assert await world.check() == []
    listed, _ = await world.store.sessions.page("acme", after="", limit=9)
    assert {head.key for head in listed} == {lost, waiting}
    assert await world.store.wake.hinted(keys.wake_shard(waiting), limit=9) == [waiting]


async def test_what_is_on_its_way_is_no_finding(world: StoredWorld) -> None:
    """An entry whose session, and a message whose hint, come between two looks, are in order."""
    ghost = records.SessionKey("acme", "ghost")
    waiting = await activations.new_session(world.store)
    await world.store.sessions.enqueue(waiting, store_samples.item("r"))
    await world.redis("ZADD", keys.sessions("acme"), 5, "ghost")

    async def arrive() -> None:
        await world.store.sessions.create(store_samples.new(ghost))
        await world.store.wake.ensure(waiting)

    assert await world.check(meanwhile=arrive, repair=True) == []


async def test_paused_and_owned_sessions_need_no_hint(world: StoredWorld) -> None:
    """A message that waits for a resume, or for an owner in office, is not forgotten."""
    head = await store_samples.owned(world.store, records.SessionKey("acme", "chat"))
    await world.store.sessions.enqueue(head.key, store_samples.item("r"))
    await world.store.nodes.claim_lease("node-1", "inc-1", ttl_ms=60_000)
    assert await world.check() == []
    await world.store.nodes.drop_lease("node-1", "inc-1")
    assert await world.names() == ["owner-lapsed", "hint-missing"]
    paused = store_samples.commit(head, status=records.Status.PAUSED)
    await world.store.sessions.commit(paused)
    assert await world.names() == ["owner-lapsed"]


async def test_unknown_tenants_are_told(world: StoredWorld) -> None:
    """Sessions and blobs of a tenant that nobody made known are not passed over in silence."""
    await world.store.sessions.create(store_samples.new(records.SessionKey("other", "chat")))
    (world.storage / "third" / "blobs").mkdir(parents=True)
    found = await world.check()
    assert [(one.what, one.tenant) for one in found] == [
        (What.TENANT_UNKNOWN, "other"),
        (What.TENANT_UNKNOWN, "third"),
    ]


async def test_one_session_alone(world: StoredWorld) -> None:
    """Only what the plan names is looked at; what it names must exist."""
    head = await world.session("write a one")
    other = await world.session("write a two")
    world.blob(other.manifest).unlink()
    assert await world.check(tenant="acme", session=head.key.session) == []
    assert await world.names(tenant="acme", session=other.key.session) == ["blob-missing"]
    with pytest.raises(errors.SessionNotFound):
        await world.check(tenant="acme", session="nobody")
    with pytest.raises(errors.TenantNotFound):
        await world.check(tenant="nobody")


async def test_sessions_at_work_give_no_false_finding(world: StoredWorld) -> None:
    """While a session commits files, states and seals without pause, everything is found whole."""
    await world.store.nodes.claim_lease("node-1", "inc-1", ttl_ms=60_000)
    here = await world.activate()

    async def work() -> None:
        for turn in range(TURNS):
            await here.send(f"write file-{turn % 5} {turn}" if turn % 3 else "large")
            await here.owned.seal_if_longer_than(20)

    working = asyncio.create_task(work())
    while not working.done():
        found = await world.check(repair=True, grace_s=0.0)
        assert [one for one in found if one.severity is findings.Severity.DAMAGE] == []
    await working
    await here.close()
    assert {one.severity for one in await world.check()} <= {findings.Severity.INFO}
