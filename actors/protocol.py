"""What gateways, node agents and session actors say to each other through Ray.

An expected refusal travels as a `Refusal` value, never as an exception: Ray wraps exceptions in its
own, and a caller must not mistake an answer for a broken call. `accept` turns it back.
"""

import enum
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from torpor import definition, deployment, errors, messages
from torpor.storage import kept_workspaces, keyring, records

#: Ray's namespace for everything of ours.
NAMESPACE = "torpor"
#: What lies in a slot's folder: the session's files, and the slot board.
WORKSPACE = kept_workspaces.WORKSPACE
BOARD = "board"


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An error as a value."""

    reason: str
    message: str
    ids: dict[str, str]


T = TypeVar("T")


def refuse(error: errors.TorporError) -> Refusal:
    """Return an error as a value."""
    return Refusal(reason=error.reason, message=error.message, ids=error.ids)


def accept(answer: T | Refusal) -> T:
    """Return the answer, or raise the error that it is."""
    if isinstance(answer, Refusal):
        raise errors.by_reason(answer.reason)(answer.message, **answer.ids)
    return answer


def slot_actor_name(node: str, nonce: str) -> str:
    """Return the Ray name of the actor that is a node's slot, before and after it is bound.

    Short, for the head names it: see `torpor.storage.record_codec`.
    """
    return f"slot/{node[:12]}/{nonce[:12]}"


def node_agent_name(node: str) -> str:
    """Return the Ray name of a node's agent."""
    return f"node-agent/{node}"


def gateway_name(node: str) -> str:
    """Return the Ray name of a node's gateway."""
    return f"gateway/{node}"


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """One activation of a session: whom to call, and what proves that it is the one meant."""

    key: records.SessionKey
    epoch: int
    #: As it is in the head.
    nonce: str
    owner: records.Owner


def seat_of(head: records.Head) -> Seat:
    """Return the activation that a head names; it must name one."""
    assert head.owner is not None  # noqa: S101 — for the type checker
    return Seat(key=head.key, epoch=head.epoch, nonce=head.nonce, owner=head.owner)


class BusyPolicy(enum.StrEnum):
    """What happens to a message that finds the session in the middle of a turn."""

    ENQUEUE = "enqueue"
    REJECT = "reject"


# --- gateway → node agent (Ray actor `node_agent_name(node)`) -------------------------------------
# activate(Activate) -> Activated | Refusal
#     NoCapacity, NodeDraining, Fenced, ActivationFailed, …
# bury(records.SessionKey, epoch: int) -> bool
#     the process of that epoch is proven dead, and owns the session no more; may raise
#     OwnerUnreachable, StoreUnavailable
# inspect_agent(import_path: str) -> AgentDescription | Refusal
# drain() -> None
#     refuses activations from now on and asks all sessions to leave; returns at once
# observe() -> records.NodeLoad


class Activate(msgspec.Struct, frozen=True, kw_only=True):
    """Ask a node for a slot and wake a session in it."""

    key: records.SessionKey
    #: What the gateway saw in the head: the claim is a compare-and-set on it.
    observed_epoch: int
    observed_incarnation: str
    agent: records.AgentVersion
    #: Seconds until the caller gives up.
    deadline_s: float
    #: What the gateway has spent on it before.
    placement_ms: float = 0.0


class Activated(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The session is on its way up: its process takes calls, and answers them once it is loaded.

    If it cannot be loaded, they are answered with the reason.
    """

    epoch: int
    #: Owner and nonce as they are in the head.
    owner: records.Owner
    nonce: str


unpack_activate = msgspec.msgpack.Decoder(Activate).decode
unpack_activated: Callable[[bytes], Activated | Refusal] = msgspec.msgpack.Decoder(
    Activated | Refusal
).decode


class AgentDescription(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a node found when it imported an agent."""

    import_path: str
    #: The class's name in lower case: the default name.
    default_name: str
    digest: str
    settings: definition.AgentSettings


# --- gateway → session actor (the Ray actor that the head names, or its lane) ---------------------
# deliver(packed Deliver) -> packed Delivered | Refusal
#     Fenced when the epoch is not the actor's
# control(Control) -> Controlled | Refusal
# place_file(PlaceFile) -> Placed | Refusal
# drain_inbox(epoch: int) -> None | Refusal
#     looks into the inbox soon; returns as soon as the session is up


class Deliver(msgspec.Struct, frozen=True, kw_only=True):
    """One message to be handled and answered."""

    epoch: int
    message: messages.Message
    body_digest: str
    busy: BusyPolicy
    #: Seconds until the caller gives up; a message still waiting then is dropped unhandled.
    deadline_s: float
    #: A version that the caller has seen.
    min_version: int = 0


class Delivered(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A turn that is committed."""

    text: str
    data: dict[str, Any]
    seq: int
    version: int
    #: Set when the agent failed: the error's reason and message.
    error: Refusal | None = None
    #: Whether the request id had been handled before.
    repeated: bool = False


class Verb(enum.StrEnum):
    """What a person may ask of a resident session."""

    EVICT = "evict"
    PAUSE = "pause"
    RESUME = "resume"


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is no message; handled in order with the turns."""

    epoch: int
    verb: Verb
    request_id: str
    deadline_s: float


class Controlled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It is done and committed."""

    version: int


class DrainInbox(msgspec.Struct, frozen=True, kw_only=True):
    """Handle what lies in the durable inbox."""


class Leave(msgspec.Struct, frozen=True, kw_only=True):
    """The node wants the slot back, unless something is under way in it."""

    epoch: int


class PlaceFile(msgspec.Struct, frozen=True, kw_only=True):
    """Put an uploaded blob into the workspace, as a commit of its own."""

    epoch: int
    path: str
    digest: str
    size_bytes: int
    mode: int
    request_id: str
    deadline_s: float


class Placed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The file is in the workspace and committed."""

    version: int


# Every message takes this way, and Ray pickles a struct ten times slower than msgspec packs it; on
# a lane everything does.
pack = msgspec.msgpack.Encoder().encode
unpack_deliver = msgspec.msgpack.Decoder(Deliver).decode
unpack_control = msgspec.msgpack.Decoder(Control).decode
unpack_place_file = msgspec.msgpack.Decoder(PlaceFile).decode
unpack_epoch = msgspec.msgpack.Decoder(int).decode
unpack_delivered: Callable[[bytes], Delivered | Refusal] = msgspec.msgpack.Decoder(
    Delivered | Refusal
).decode
unpack_controlled: Callable[[bytes], Controlled | Refusal] = msgspec.msgpack.Decoder(
    Controlled | Refusal
).decode
unpack_placed: Callable[[bytes], Placed | Refusal] = msgspec.msgpack.Decoder(
    Placed | Refusal
).decode
unpack_done: Callable[[bytes], Refusal | None] = msgspec.msgpack.Decoder(Refusal | None).decode


# --- node agent → session actor -------------------------------------------------------------------
# prepare() -> Prepared | Refusal
#     everything that can be done before it is known for which session
# bind(Bind) -> None | Refusal
#     binds the process, once, and begins to claim and load; by lane where it has one
# booted() -> None | Refusal
#     the end of that; likewise
# leave(Leave) -> Controlled | Refusal
#     NotEvictable when something is under way
# ping() -> int
#     its epoch; answers whatever the agent's code does
# run_until_ended() -> None
#     never returns: the process ends when the session has


class SlotSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is made for: any session of this agent version."""

    deployment: deployment.Deployment
    agent: records.AgentVersion
    #: The tenant's own keys, never the deployment's.
    keys: keyring.TenantKeys
    #: The node's name, for the history.
    node_name: str
    #: The slot's folder, made by the node agent; the workspace and the board lie in it.
    slot: pathlib.Path
    #: The node's address, at which the process listens; empty: it does not.
    host: str = ""
    #: What its maker has to know to bind it.
    secret: str = ""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """The process is up, and waits to be bound."""

    pid: int
    #: Where it listens; see `records.Owner`.
    lane: str
    #: Why it was not forked from a process that had imported everything; empty if it was.
    not_forked: str


class BootSpec(SlotSpec, frozen=True, kw_only=True):
    """Everything a process needs to become a session's owner."""

    claim: records.Acquire


class Bind(msgspec.Struct, frozen=True, kw_only=True):
    """Which session a process is to be from now on."""

    claim: records.Acquire
    #: What the wake has taken so far.
    laps_ms: dict[str, float]
    #: Seconds until it has to be loaded.
    boot_s: float


unpack_bind = msgspec.msgpack.Decoder(Bind).decode
