"""What other clients do between the round trips of a call, or between its commands."""

import operator
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis

from torpor import errors, limits
from torpor.storage import keys, records, redis_sessions, redis_store, redis_wire
from torpor.testing import store_samples, valkey


@pytest.fixture
async def wire(store_server: valkey.Server) -> AsyncIterator[redis_wire.Wire]:
    """Yield a wire to the run's server."""
    wire = redis_wire.Wire(store_server.url)
    yield wire
    await wire.close()


def _after_first_write(
    wire: redis_wire.Wire, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Awaitable[Any]]
) -> None:
    """Let something happen once the next write was answered."""
    write = wire.write

    async def interrupted(*commands: redis_wire.Command, **how: Any) -> list[Any]:
        replies = await write(*commands, **how)
        monkeypatch.undo()
        await happens()
        return replies

    monkeypatch.setattr(wire, "write", interrupted)


async def test_delete_amid_a_create_leaves_it_listed(
    wire: redis_wire.Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete that finds nothing yet does not take the new session out of the index."""
    sessions = redis_sessions.RedisSessions(wire)
    key = store_samples.key()

    async def delete() -> None:
        with pytest.raises(errors.SessionNotFound):
            await sessions.delete(key)

    _after_first_write(wire, monkeypatch, delete)
    head = await sessions.create(store_samples.new(key))
    assert await sessions.page(key.tenant, after="", limit=9) == ([head], "")


async def test_claim_overtaken_between_its_reads_is_fenced(
    wire: redis_wire.Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State and head of different owners are never handed out as one."""
    sessions = redis_sessions.RedisSessions(wire)
    head = await sessions.create(store_samples.new(store_samples.key()))
    read = wire.read

    async def overtaken(*commands: redis_wire.Command, **how: Any) -> list[Any]:
        # The claim alone, then another owner's, then what the first one reads.
        replies = await read(commands[0], **how)
        for command in commands[1:]:
            replies += await read(command)
            await read(("HSET", keys.head(head.key), "e", 2, "n", "other"))
        return replies

    monkeypatch.setattr(wire, "read", overtaken)
    with pytest.raises(errors.Fenced):
        await sessions.acquire(store_samples.claim(head))


async def test_a_turn_logs_its_own_state_alone(own_store_server: valkey.Server) -> None:
    """The states that stay as restore points are not written to log and replicas once more."""
    store = redis_store.open(store_samples.deployment_at(own_store_server.url))
    log = redis.Redis(port=own_store_server.port)
    reference = records.CheckpointRef(
        version=2, epoch=1, origin="chat", state="state-digest", state_bytes=20_000, inline=True
    )
    head, sizes, state = await store_samples.owned(store), list[int](), b"s" * 20_000
    for _ in range(limits.RESTORE_POINTS_MAX + 2):
        commit = store_samples.commit(head, checkpoint=reference, inline_state=state)
        await store.sessions.commit(commit)
        head = await store.sessions.head(head.key)
        sizes.append(int(log.info("persistence")["aof_current_size"]))
    await store.close()
    assert all(more < 1.5 * len(state) for more in map(operator.sub, sizes[1:], sizes))
