"""What goes into a session and what comes out: messages, replies, events."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from torpor import errors, limits


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
SESSION_RECOVERED = "session.recovered"
USER_MESSAGE = "user.message"
AGENT_MESSAGE = "agent.message"
AGENT_OUTPUT = "agent.output"
AGENT_ERROR = "agent.error"
WORKSPACE_WRITTEN = "workspace.written"

#: Prefixes that only torpor writes, so that a history can be trusted to say what happened.
RESERVED_PREFIXES = ("session.", "user.", "approval.", "workspace.", "agent.")

_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


def check_own_type(type: str) -> None:  # noqa: A002 — the name that `ctx.emit` has for it
    """Refuse what is no name for an agent's own events.

    Raises:
        InvalidField: it is not dotted lower case, or begins with a prefix of `RESERVED_PREFIXES`.
    """
    if not _TYPE.fullmatch(type) or type.startswith(RESERVED_PREFIXES):
        raise errors.InvalidField(
            f"{type!r} is not an event type that an agent may use: write it dotted and in lower "
            f"case, and begin with none of {', '.join(RESERVED_PREFIXES)}",
            field="type",
        )


def plain(data: dict[str, Any], field: str) -> tuple[dict[str, Any], int]:
    """Return a copy of `data` that holds nothing but JSON's types, and its encoded size in bytes.

    A copy, so that what is committed outlives the agent's classes and later changes.

    Raises:
        InvalidField: it holds something else, or encodes to more than `EVENT_BYTES_MAX`.
    """
    try:
        encoded = msgspec.json.encode(data)
        copy: dict[str, Any] = msgspec.json.decode(encoded, type=dict[str, Any])
    except (TypeError, msgspec.MsgspecError, RecursionError, OverflowError) as error:
        raise errors.InvalidField(f"{field} is not JSON-like: {error}", field=field) from None
    if len(encoded) > limits.EVENT_BYTES_MAX:
        raise errors.InvalidField(
            f"{field} is {len(encoded)} bytes, more than {limits.EVENT_BYTES_MAX}", field=field
        )
    return copy, len(encoded)
