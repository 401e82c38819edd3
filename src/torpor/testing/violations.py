"""What a checker finds, and what it is told may be lost."""

import enum
from collections.abc import Callable

import msgspec


class Invariant(enum.StrEnum):
    """What always holds, whatever breaks."""

    #: Versions are gap-free, epochs never decrease, one nonce and one process per epoch.
    FENCE = "I1"
    #: An acknowledged token is in the history once, an unknown one at most once, a refused one
    #: never; a request has one answer.
    ONCE = "I2"
    #: The order of the history is one that the clients' clocks allow.
    ORDER = "I3"
    #: State, files and history are of one version.
    ONE_VERSION = "I4"
    #: Nothing of an uncommitted version was seen.
    COMMITTED = "I5"
    #: Healthy again within a bound.
    HEALED = "I6"
    #: No tenant saw anything of another.
    TENANTS = "I7"
    #: Nothing damaged was decoded, bounds hold, deleted stays deleted.
    GUARDS = "I8"


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that should never have happened."""

    invariant: Invariant
    #: `tenant/session`; empty if it is about none.
    session: str
    detail: str
    #: Ids of the operations that show it.
    operations: tuple[int, ...] = ()

    def __str__(self) -> str:
        shown = f" (operations {', '.join(map(str, self.operations))})" if self.operations else ""
        return f"{self.invariant} {self.session}: {self.detail}{shown}"


#: Takes an invariant, a sentence, and ids of operations.
Say = Callable[..., None]


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Acknowledged versions that somebody was told are gone."""

    #: The newest version that was kept, and the newest that was lost.
    kept_version: int
    lost_version: int
    #: Of the event that says so, and the clock of its writer; 0 if a client was told.
    seq: int = 0
    at_ms: int = 0

    def names(self, version: int) -> bool:
        """Whether the report covers a version."""
        return self.kept_version < version <= self.lost_version
