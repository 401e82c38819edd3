"""Going over the wake hints, so that a wake can be late but is never lost."""

import asyncio
import contextlib
import logging
import random

from torpor import clock, errors, limits
from torpor.router import waking
from torpor.storage import records, store

log = logging.getLogger(__name__)

#: Between two shards; all shards together take some seconds, each look is one cheap read, and
#: every gateway sweeps.
PAUSE_S = 0.4
#: Wakes of one sweep at a time: activations that somebody waits for come first.
CONCURRENT_MAX = 4


class WakeSweeper:
    """Looks at the hinted sessions of one shard after the other."""

    def __init__(
        self, stored: store.Store, waker: waking.Waker, time: clock.Clock, rng: random.Random
    ) -> None:
        self._store = stored
        self._waker = waker
        self._clock = time
        self._rng = rng

    async def run(self) -> None:
        """Sweep until cancelled, each round in another order, so that gateways do not meet."""
        while True:
            for shard in self._rng.sample(range(limits.WAKE_SHARDS), limits.WAKE_SHARDS):
                await self._clock.sleep(PAUSE_S * self._rng.uniform(0.5, 1.5))
                try:
                    await self.sweep(shard)
                except errors.TorporError as error:
                    log.warning("sweep failed: %s", error, extra={"action": "sweep_failed"})
                except Exception:
                    # Nobody would start the sweep again.
                    log.exception("sweep failed", extra={"action": "sweep_failed"})

    async def sweep(self, shard: int) -> None:
        """Look at every hint of one shard once.

        A session that cannot be woken, or is paused, keeps its hint, behind all others: sessions
        that do not wake must not keep the rest from being looked at.

        Raises:
            StoreUnavailable
        """
        keys = await self._store.wake.hinted(shard, limit=limits.WAKE_SWEEP_MAX)
        room = asyncio.Semaphore(CONCURRENT_MAX)

        async def look(key: records.SessionKey) -> None:
            async with room:
                try:
                    await self._look(key)
                except errors.SessionPaused:
                    with contextlib.suppress(errors.TorporError):
                        await self._store.wake.postpone(key)
                except Exception as error:
                    # Anything: what is wrong with one session must not end the wakes of others.
                    log.warning(
                        "hint stays: %r",
                        error,
                        extra={"action": "hint_stays", "session_id": str(key)},
                    )
                    with contextlib.suppress(errors.TorporError):
                        await self._store.wake.postpone(key)

        async with asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(look(key))

    async def _look(self, key: records.SessionKey) -> None:
        if await self._store.sessions.inbox(key):
            await self._waker.wake(key)
        else:
            await self._store.wake.clear(key)
