"""Indexes that seem wrong, looked at again after a while, and then mended.

Indexes are written beside the records that they follow from, not with them: what is on its way
looks wrong for a moment. What is removed in error is put back at once.
"""

from torpor import clock, errors
from torpor.storage import findings, records, redis_inspection, store

#: Sessions that wait for their second look; more are looked at in turns, each after its own pause.
WAITING_MAX = 10_000
#: Longer than a writer waits for the store between its two writes.
PAUSE_S = 10.0

_What = findings.What


class SecondLooks:
    """The sessions of one run that are to be looked at once more."""

    def __init__(
        self,
        opened: store.Store,
        inspection: redis_inspection.RedisInspection,
        report: findings.Report,
        time: clock.Clock,
        *,
        repair: bool,
    ) -> None:
        self._store = opened
        self._inspection = inspection
        self._report = report
        self._time = time
        self._repair = repair
        #: Listed by the index, and there is no living head.
        self._stale: list[records.SessionKey] = []
        #: Something waits in the inbox, nobody is in office, and there is no hint.
        self._unhinted: list[records.SessionKey] = []

    async def stale(self, key: records.SessionKey) -> None:
        """Suspect an entry of the index."""
        self._stale.append(key)
        await self._bounded()

    async def waiting(self, key: records.SessionKey) -> None:
        """Suspect a session with work and without an owner, if nobody is told of it."""
        if not await self._inspection.hinted(key):
            self._unhinted.append(key)
            await self._bounded()

    async def settle(self) -> None:
        """Look again at all that was suspected, and tell and mend what is wrong still."""
        if not self._stale and not self._unhinted:
            return
        await self._time.sleep(PAUSE_S)
        for entry in await self._inspection.entries(self._stale):
            if entry.indexed and not entry.living:
                mended = self._repair and await self._inspection.strike(entry.key)
                text = "the index lists it, and there is no such session" + _remedy(mended)
                self._report(findings.of(_What.INDEX_STALE, entry.key, text, repaired=mended))
        for key in self._unhinted:
            if await self._waits(key) and not await self._inspection.hinted(key):
                if self._repair:
                    await self._store.wake.ensure(key)
                text = "messages wait in its inbox, and nothing wakes it" + _remedy(self._repair)
                self._report(findings.of(_What.HINT_MISSING, key, text, repaired=self._repair))
        self._stale.clear()
        self._unhinted.clear()

    async def _bounded(self) -> None:
        if len(self._stale) + len(self._unhinted) >= WAITING_MAX:
            await self.settle()

    async def _waits(self, key: records.SessionKey) -> bool:
        try:
            head = await self._store.sessions.head(key)
        except (errors.SessionNotFound, errors.SessionDeleted):
            return False
        owner = head.owner
        if head.status is records.Status.PAUSED or (
            owner and await self._store.nodes.lease_stands(owner.node, owner.incarnation)
        ):
            return False
        return bool((await self._inspection.look(key)).inbox)


def _remedy(mended: bool) -> str:
    return "; mended" if mended else "; use --repair"
