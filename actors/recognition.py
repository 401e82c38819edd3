"""Whether the store still knows the owners that are on a node: it may have gone back."""

import logging
from collections.abc import Iterable

from torpor import errors
from torpor.actors import slot_process
from torpor.storage import store

log = logging.getLogger(__name__)


class Recognition:
    """Looks once after each time that the store was away, until a look gets through.

    A server that failed over to a replica closes the connections of the one before.
    """

    def __init__(self, backing: store.Store) -> None:
        self._store = backing
        #: Of the store, as of the last look that got through.
        self._connections_lost = 0
        self._looking = False

    def due(self) -> bool:
        """Whether to look now."""
        return not self._looking and self._connections_lost != self._store.connections_lost

    async def forgotten(self, here: Iterable[slot_process.Slot]) -> list[slot_process.Slot]:
        """Return those that the store does not know as owners any more."""
        self._looking, connections_lost = True, self._store.connections_lost
        found = []
        try:
            for slot in here:
                try:
                    if await slot.is_forgotten(self._store.sessions):
                        found.append(slot)
                except errors.Unavailable:
                    return found
                except Exception:
                    # What is wrong with one session must not hide the others.
                    log.exception("not looked at", extra={"action": "look_failed"})
            self._connections_lost = connections_lost
            return found
        finally:
            self._looking = False
