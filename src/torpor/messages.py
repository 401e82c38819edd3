"""What goes into a session and what comes out: messages, replies, events."""

from collections.abc import Mapping
from typing import Any

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody says to a session."""

    #: The words; for a notebook, Python.
    text: str
    #: Anything else, JSON-like.
    data: dict[str, Any] = {}
    #: The client's id of this request: the same id is handled once.
    request_id: str = ""
    #: Who speaks: a free name, `user` unless the client says otherwise.
    sender: str = "user"


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent answers; `on_message` may also return a plain `str`."""

    text: str = ""
    #: Structured content, JSON-like.
    data: dict[str, Any] = {}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a session's history."""

    #: Gap-free from 1 for the whole life of the session.
    seq: int
    #: Dotted, as `user.message`.
    type: str
    #: JSON-like.
    data: Mapping[str, Any]
    #: The commit that made it true.
    version: int
    #: The owner's wall clock, for people; nothing is decided by it.
    at_ms: int


# Event types that torpor itself writes. An agent's own types come through `ctx.emit`.
SESSION_CREATED = "session.created"
SESSION_WOKEN = "session.woken"
SESSION_PAUSED = "session.paused"
SESSION_RESUMED = "session.resumed"
USER_MESSAGE = "user.message"
AGENT_MESSAGE = "agent.message"
AGENT_OUTPUT = "agent.output"
AGENT_ERROR = "agent.error"
WORKSPACE_WRITTEN = "workspace.written"

#: Prefixes that only torpor writes, so that a history can be trusted to say what happened.
RESERVED_PREFIXES = ("session.", "user.", "approval.", "workspace.", "agent.")
