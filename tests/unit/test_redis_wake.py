"""A wake hint survives every sweep that overlaps the message it stands for."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from torpor.storage import keys, records, redis_wake, redis_wire
from torpor.testing import clock, store_samples, valkey


@pytest.fixture
async def wire(store_server: valkey.Server) -> AsyncIterator[redis_wire.Wire]:
    """Yield a wire to the run's server."""
    wire = redis_wire.Wire(store_server.url)
    yield wire
    await wire.close()


async def _hinted(index: redis_wake.RedisWakeIndex, key: records.SessionKey) -> bool:
    return key in await index.hinted(keys.wake_shard(key), limit=1_000)


async def test_hint_written_after_the_look_survives(
    wire: redis_wire.Wire, fake_clock: clock.FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweeper that saw an empty inbox does not remove what a writer has hinted since."""
    key, index = store_samples.key(), redis_wake.RedisWakeIndex(wire, fake_clock)
    await index.ensure(key)
    look = wire.read

    async def interrupted(*commands: redis_wire.Command, **how: Any) -> list[Any]:
        replies = await look(*commands, **how)
        monkeypatch.undo()
        # The writer's second hint, when its message is in the inbox.
        await index.ensure(key)
        return replies

    monkeypatch.setattr(wire, "read", interrupted)
    await index.clear(key)
    assert await _hinted(index, key)
    await index.clear(key)
    assert not await _hinted(index, key)


async def test_end_of_a_shard_is_behind_every_clock(
    wire: redis_wire.Wire, fake_clock: clock.FakeClock
) -> None:
    """A gateway whose clock is behind moves hints past those of one whose clock is ahead."""
    ahead = clock.FakeClock(now_ms=fake_clock.now_ms() + 3_600_000)
    late, early = store_samples.keys_of_one_shard(2)
    index = redis_wake.RedisWakeIndex(wire, fake_clock)
    await index.ensure(late)
    await redis_wake.RedisWakeIndex(wire, ahead).ensure(early)
    await index.postpone(late)
    hints = await index.hinted(keys.wake_shard(late), limit=1_000)
    assert [key for key in hints if key in (late, early)] == [early, late]
