"""Names of everything in Redis. A session's keys share the tag `{tenant/session}`: one slot."""

import zlib

from torpor import limits
from torpor.storage import records

TENANTS = "torpor:tenants"
API_KEYS = "torpor:keys"
STORAGE = "torpor:storage"
NODES = "torpor:nodes"
LOADS = "torpor:loads"


def head(key: records.SessionKey) -> str:
    """Hash: who owns the session and what its last commit is."""
    return f"{{{key}}}:head"


def hot(key: records.SessionKey) -> str:
    """Stream: the newest events, ids `<seq>-0`."""
    return f"{{{key}}}:hot"


def inbox(key: records.SessionKey) -> str:
    """List: what waits, oldest first."""
    return f"{{{key}}}:inbox"


def dedup(key: records.SessionKey) -> str:
    """Hash: request id → outcome."""
    return f"{{{key}}}:dedup"


def checkpoints(key: records.SessionKey) -> str:
    """List: the newest state's envelope, if it is small, then restore points and theirs."""
    return f"{{{key}}}:checkpoints"


def live(key: records.SessionKey) -> str:
    """Channel: nudges to watchers."""
    return f"{{{key}}}:live"


def sessions(tenant: str) -> str:
    """Sorted set: sessions of a tenant by time of creation."""
    return f"torpor:sessions:{tenant}"


def agents(tenant: str) -> str:
    """Hash: `name` → newest number, `name@number` → version."""
    return f"torpor:agents:{tenant}"


def lease(node: str, incarnation: str) -> str:
    """String that expires: whether an incarnation of a node is in office."""
    return f"torpor:lease:{node}:{incarnation}"


def wake(shard: int) -> str:
    """Sorted set: sessions that may have something to wake for, by time of the hint."""
    return f"torpor:wake:{shard}"


def wake_shard(key: records.SessionKey) -> int:
    """Return the shard of the wake index in which a session is hinted."""
    return zlib.crc32(str(key).encode()) % limits.WAKE_SHARDS
