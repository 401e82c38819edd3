"""What a check of stored things may find, as values."""

import enum
from collections.abc import Callable
from typing import Any

import msgspec

from torpor.storage import records


class Severity(enum.StrEnum):
    """How much it matters. Only what is above `info` makes a check fail."""

    #: Nothing is wrong; it takes room, or will be dealt with by itself.
    INFO = "info"
    #: Nothing is lost, and something does not work as it should.
    WARNING = "warning"
    #: Bytes that were acknowledged are not what they were.
    DAMAGE = "damage"


class What(enum.StrEnum):
    """What was found; the names are stable, for scripts."""

    HEAD_UNREADABLE = "head-unreadable"
    HEAD_INCONSISTENT = "head-inconsistent"
    HISTORY_GAP = "history-gap"
    HISTORY_CORRUPT = "history-corrupt"
    SEGMENT_MISSING = "segment-missing"
    SEGMENT_CORRUPT = "segment-corrupt"
    CHECKPOINT_MISSING = "checkpoint-missing"
    CHECKPOINT_CORRUPT = "checkpoint-corrupt"
    CHECKPOINT_UNVERIFIED = "checkpoint-unverified"
    CHECKPOINT_INCOMPATIBLE = "checkpoint-incompatible"
    BLOB_MISSING = "blob-missing"
    BLOB_CORRUPT = "blob-corrupt"
    BLOB_UNREADABLE = "blob-unreadable"
    INBOX_CORRUPT = "inbox-corrupt"
    INBOX_UNREMEMBERED = "inbox-unremembered"
    SESSION_BUSY = "session-busy"
    OWNER_LAPSED = "owner-lapsed"
    INDEX_MISSING = "index-missing"
    INDEX_STALE = "index-stale"
    HINT_MISSING = "hint-missing"
    TENANT_UNKNOWN = "tenant-unknown"
    ORPHAN_BLOB = "orphan-blob"
    UPLOAD_LEFTOVER = "upload-leftover"
    ORPHANS_UNJUDGED = "orphans-unjudged"


_W, _D = Severity.WARNING, Severity.DAMAGE
_SEVERITY: dict[What, Severity] = {
    **dict.fromkeys(What, Severity.INFO),
    **dict.fromkeys((What.CHECKPOINT_INCOMPATIBLE, What.INBOX_UNREMEMBERED, What.SESSION_BUSY), _W),
    **dict.fromkeys((What.INDEX_MISSING, What.INDEX_STALE, What.HINT_MISSING), _W),
    **dict.fromkeys((What.CHECKPOINT_UNVERIFIED, What.TENANT_UNKNOWN), _W),
    **dict.fromkeys((What.HEAD_UNREADABLE, What.HEAD_INCONSISTENT, What.INBOX_CORRUPT), _D),
    **dict.fromkeys((What.HISTORY_GAP, What.HISTORY_CORRUPT), _D),
    **dict.fromkeys((What.SEGMENT_MISSING, What.SEGMENT_CORRUPT), _D),
    **dict.fromkeys((What.CHECKPOINT_MISSING, What.CHECKPOINT_CORRUPT), _D),
    **dict.fromkeys((What.BLOB_MISSING, What.BLOB_CORRUPT, What.BLOB_UNREADABLE), _D),
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it should be."""

    severity: Severity
    what: What
    tenant: str
    #: Empty when it concerns no session alone.
    session: str = ""
    #: A digest, a seq, a version or a path; empty when the session says it all.
    where: str = ""
    #: What is wrong, and what to do.
    message: str
    #: Whether it is as it should be now.
    repaired: bool = False
    #: How many of them, where one finding tells of several.
    count: int = 1
    #: All of them together, where it tells of files.
    size_bytes: int = 0

    @property
    def remains(self) -> bool:
        """Whether somebody has to do something about it."""
        return self.severity is not Severity.INFO and not self.repaired


Report = Callable[[Finding], None]


def of(what: What, key: records.SessionKey, message: str, **fields: Any) -> Finding:
    """Return a finding of a session."""
    return in_tenant(what, key.tenant, message, session=key.session, **fields)


def in_tenant(what: What, tenant: str, message: str, **fields: Any) -> Finding:
    """Return a finding of a tenant."""
    return Finding(severity=_SEVERITY[what], what=what, tenant=tenant, message=message, **fields)
