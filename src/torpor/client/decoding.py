"""Protobuf messages as the client's values."""

from typing import Any

import msgspec

from torpor import errors, messages
from torpor.client import values
from torpor.v1 import admin_pb2, agents_pb2, common_pb2, sessions_pb2, workspaces_pb2

_STATUS_PREFIX = "SESSION_STATUS_"
_KIND_PREFIX = "FILE_KIND_"


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in `text`; an empty one for empty text."""
    return msgspec.json.decode(text, type=dict[str, Any]) if text else {}


def session(proto: sessions_pb2.Session) -> values.SessionInfo:
    """Return a session."""
    status = sessions_pb2.SessionStatus.Name(proto.status)
    return values.SessionInfo(
        tenant=proto.tenant,
        id=proto.id,
        agent=proto.agent,
        agent_version=proto.agent_version,
        status=status.removeprefix(_STATUS_PREFIX).lower(),
        resident=proto.resident,
        node=proto.node,
        node_name=proto.node_name,
        epoch=proto.epoch,
        version=proto.version,
        last_seq=proto.last_seq,
        created_ms=proto.created_ms,
        updated_ms=proto.updated_ms,
        usage=values.Usage(
            turns=proto.usage.turns,
            cpu_ms=proto.usage.cpu_ms,
            busy_ms=proto.usage.busy_ms,
            rss_bytes=proto.usage.rss_bytes,
        ),
    )


def event(proto: common_pb2.Event) -> messages.Event:
    """Return an event."""
    return messages.Event(
        seq=proto.seq,
        type=proto.type,
        data=json_object(proto.data_json),
        version=proto.version,
        at_ms=proto.at_ms,
    )


def reply(proto: sessions_pb2.SendMessageResponse, session_id: str) -> values.Reply:
    """Return a turn's reply.

    Raises:
        TurnFailed: the agent failed; with the ids `session`, `seq` and `version`, as the class that
            the response's reason names.
    """
    if proto.stop_reason == sessions_pb2.STOP_REASON_ERROR:
        cls = errors.by_reason(proto.error_reason)
        raise (errors.TurnFailed if cls is errors.Internal else cls)(
            proto.error_message or None, session=session_id, seq=proto.seq, version=proto.version
        )
    return values.Reply(
        text=proto.text,
        data=json_object(proto.data_json),
        seq=proto.seq,
        version=proto.version,
        repeated=proto.repeated,
    )


def file(proto: workspaces_pb2.File) -> values.FileInfo:
    """Return a file's description."""
    kind = workspaces_pb2.FileKind.Name(proto.kind)
    return values.FileInfo(
        path=proto.path,
        kind=kind.removeprefix(_KIND_PREFIX).lower(),
        size_bytes=proto.size_bytes,
        mode=proto.mode,
        digest=proto.digest,
        target=proto.target,
    )


def agent(proto: agents_pb2.Agent) -> values.AgentInfo:
    """Return an agent's version."""
    return values.AgentInfo(
        name=proto.name,
        version=proto.version,
        import_path=proto.import_path,
        digest=proto.digest,
        idle_timeout_s=proto.idle_timeout_s,
        turn_timeout_s=proto.turn_timeout_s,
        workspace_quota_bytes=proto.workspace_quota_bytes,
        created_ms=proto.created_ms,
    )


def node(proto: admin_pb2.Node) -> values.NodeInfo:
    """Return a node."""
    return values.NodeInfo(
        id=proto.id,
        name=proto.name,
        incarnation=proto.incarnation,
        gateway=proto.gateway,
        alive=proto.alive,
        draining=proto.draining,
        sessions=proto.sessions,
        sessions_max=proto.sessions_max,
        cpu=proto.cpu,
        memory=proto.memory,
        slots_in_stock=proto.slots_in_stock,
    )
