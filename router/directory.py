"""Where sessions were last seen: a hint that saves a read, never the truth.

The owner checks the epoch of every call, so a wrong hint costs a repeat and nothing else.
"""

from torpor.actors import protocol
from torpor.router import lru
from torpor.storage import records

#: About 300 bytes each: what one gateway meets in an hour, in a few megabytes.
HINTS_MAX = 20_000


class Directory:
    """The hints of one gateway."""

    def __init__(self, hints_max: int = HINTS_MAX) -> None:
        self._hints: lru.Lru[records.SessionKey, protocol.Seat] = lru.Lru(hints_max)

    def get(self, key: records.SessionKey) -> protocol.Seat | None:
        """Return where the session was last seen."""
        return self._hints.get(key)

    def put(self, key: records.SessionKey, seat: protocol.Seat) -> None:
        """Remember where the session is, unless a newer epoch is known."""
        known = self._hints.get(key)
        if known is None or known.epoch <= seat.epoch:
            self._hints.put(key, seat)

    def forget(self, key: records.SessionKey, epoch: int) -> None:
        """Drop the hint if it still names this epoch or an older one."""
        known = self._hints.get(key)
        if known is not None and known.epoch <= epoch:
            self._hints.drop(key)
