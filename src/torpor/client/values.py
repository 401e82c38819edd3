"""What the client returns, as frozen values."""

import pathlib
from typing import Any, Literal

import msgspec

from torpor import messages

#: What happens to a message that finds the session in the middle of a turn.
Busy = Literal["enqueue", "reject"]
#: What to write to a file: bytes, or the local file that holds them.
Content = bytes | pathlib.Path


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a session answered, in a commit that is durable."""

    text: str
    #: JSON-like.
    data: dict[str, Any]
    #: Of the event that holds the reply.
    seq: int
    #: Of the commit that contains it.
    version: int
    #: Whether this request id had been handled before: nothing ran again.
    repeated: bool


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A message that lies durably in the inbox; its turn is yet to come."""

    #: Sending it again with this id returns the reply, once there is one.
    request_id: str
    #: Whether this request id had been accepted before.
    repeated: bool


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A provisional piece of a reply; the committed event replaces it."""

    text: str


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a session has used so far."""

    turns: int
    #: CPU milliseconds of its processes, over its whole life.
    cpu_ms: int
    #: Milliseconds that turns took.
    busy_ms: int
    #: Resident bytes at the last commit.
    rss_bytes: int


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A session as of its last commit."""

    tenant: str
    id: str
    agent: str
    agent_version: int
    #: `idle`, `running` or `paused`.
    status: str
    #: Whether a process holds the session now.
    resident: bool
    #: Ray's id of the node that holds it, empty when evicted.
    node: str
    #: What people call that node; empty when evicted, or if the gateway does not know it.
    node_name: str
    epoch: int
    version: int
    #: The seq of the newest event.
    last_seq: int
    created_ms: int
    updated_ms: int
    usage: Usage


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """A run of events."""

    #: In order of `seq`.
    events: list[messages.Event]
    #: Pass as `after_seq` to read on; 0 at the end.
    next_after_seq: int


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a workspace."""

    #: Relative to the workspace, with forward slashes.
    path: str
    #: `regular`, `directory` or `symlink`.
    kind: str
    size_bytes: int
    #: Permission bits.
    mode: int
    #: Of the content; empty for folders and links.
    digest: str
    #: Of a symlink.
    target: str


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was written, and the commit that did it."""

    file: FileInfo
    version: int


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable version of an agent."""

    name: str
    version: int
    #: `module:Class`.
    import_path: str
    digest: str
    idle_timeout_s: float
    turn_timeout_s: float
    workspace_quota_bytes: int
    created_ms: int


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the gateway that was asked sees it."""

    #: Ray's node id.
    id: str
    name: str
    incarnation: str
    #: `host:port`.
    gateway: str
    alive: bool
    draining: bool
    sessions: int
    sessions_max: int
    #: Share of the node's CPU in use, 0 to 1 and above when overcommitted.
    cpu: float
    #: Share of the node's memory in use, 0 to 1.
    memory: float
    #: Processes that are up and wait for a session to wake.
    slots_in_stock: int
