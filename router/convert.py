"""Records as the messages of torpor.v1."""

import base64
import os

import msgspec

from torpor import errors, limits, messages
from torpor.actors import protocol
from torpor.router import watching
from torpor.storage import history, manifest, records
from torpor.v1 import admin_pb2, agents_pb2, common_pb2, sessions_pb2, workspaces_pb2

_STATUS = {
    records.Status.IDLE: sessions_pb2.SESSION_STATUS_IDLE,
    records.Status.RUNNING: sessions_pb2.SESSION_STATUS_RUNNING,
    records.Status.PAUSED: sessions_pb2.SESSION_STATUS_PAUSED,
}

_FILE_KIND = {
    manifest.Kind.FILE: workspaces_pb2.FILE_KIND_REGULAR,
    manifest.Kind.FOLDER: workspaces_pb2.FILE_KIND_DIRECTORY,
    manifest.Kind.LINK: workspaces_pb2.FILE_KIND_SYMLINK,
}

BUSY = {
    sessions_pb2.BUSY_POLICY_UNSPECIFIED: protocol.BusyPolicy.ENQUEUE,
    sessions_pb2.BUSY_POLICY_ENQUEUE: protocol.BusyPolicy.ENQUEUE,
    sessions_pb2.BUSY_POLICY_REJECT: protocol.BusyPolicy.REJECT,
}


def json_text(data: object) -> str:
    """Return JSON-like data as text."""
    return msgspec.json.encode(data).decode()


def session(head: records.Head, *, node_name: str, resident: bool) -> sessions_pb2.Session:
    """Return a head as clients see it."""
    return sessions_pb2.Session(
        tenant=head.key.tenant,
        id=head.key.session,
        agent=head.agent,
        agent_version=head.agent_version,
        status=_STATUS[head.status],
        resident=resident,
        node=head.owner.node if head.owner and resident else "",
        epoch=head.epoch,
        version=head.version,
        last_seq=head.next_seq - 1,
        created_ms=head.created_ms,
        updated_ms=head.updated_ms,
        usage=sessions_pb2.SessionUsage(
            turns=head.usage.turns,
            cpu_ms=head.usage.cpu_ms,
            busy_ms=head.usage.busy_ms,
            rss_bytes=head.usage.rss_bytes,
        ),
        node_name=node_name,
    )


def event(committed: messages.Event) -> common_pb2.Event:
    """Return an event of the history."""
    return common_pb2.Event(
        seq=committed.seq,
        type=committed.type,
        data_json=json_text(committed.data),
        version=committed.version,
        at_ms=committed.at_ms,
    )


def event_page(page: history.Page) -> sessions_pb2.ListEventsResponse:
    """Return a page of the history, cut where it would become too large for one response."""
    converted: list[common_pb2.Event] = []
    size_bytes = 0
    for committed in page.events:
        if size_bytes >= limits.PAGE_EVENTS_BYTES_MAX:
            return sessions_pb2.ListEventsResponse(
                events=converted, next_after_seq=converted[-1].seq
            )
        converted.append(event(committed))
        size_bytes += converted[-1].ByteSize()
    return sessions_pb2.ListEventsResponse(events=converted, next_after_seq=page.next_after or 0)


def watched(item: watching.Item) -> sessions_pb2.WatchEventsResponse:
    """Return what a watcher is sent."""
    if isinstance(item, watching.Delta):
        return sessions_pb2.WatchEventsResponse(delta=item.text)
    if isinstance(item, watching.Heartbeat):
        return sessions_pb2.WatchEventsResponse(heartbeat_seq=item.seq)
    return sessions_pb2.WatchEventsResponse(event=event(item))


def delivered(answer: protocol.Delivered) -> sessions_pb2.SendMessageResponse:
    """Return a committed turn."""
    failed = answer.error
    return sessions_pb2.SendMessageResponse(
        text=answer.text,
        data_json=json_text(answer.data) if answer.data else "",
        seq=answer.seq,
        version=answer.version,
        stop_reason=(
            sessions_pb2.STOP_REASON_ERROR if failed else sessions_pb2.STOP_REASON_END_TURN
        ),
        error_reason=failed.reason if failed else "",
        error_message=failed.message if failed else "",
        repeated=answer.repeated,
    )


def accepted(enqueued: records.Enqueued) -> sessions_pb2.SendMessageResponse:
    """Return an acknowledgement; `seq` and `version` say where the answer is, if there is one."""
    known = enqueued.known
    return sessions_pb2.SendMessageResponse(
        seq=known.seq if known else 0,
        version=known.version if known else 0,
        stop_reason=sessions_pb2.STOP_REASON_ACCEPTED,
        repeated=known is not None,
    )


def agent(version: records.AgentVersion) -> agents_pb2.Agent:
    """Return an agent version."""
    return agents_pb2.Agent(
        name=version.name,
        version=version.version,
        import_path=version.import_path,
        digest=version.digest,
        idle_timeout_s=version.settings.idle_timeout_s,
        turn_timeout_s=version.settings.turn_timeout_s,
        workspace_quota_bytes=version.settings.workspace_quota_bytes,
        created_ms=version.created_ms,
    )


def node(view: records.NodeView) -> admin_pb2.Node:
    """Return a node with its load, if it publishes one."""
    load = view.load
    return admin_pb2.Node(
        id=view.record.node,
        name=view.record.name,
        incarnation=view.record.incarnation,
        gateway=view.record.gateway,
        alive=view.alive,
        draining=load.draining if load else False,
        sessions=load.sessions if load else 0,
        sessions_max=view.record.sessions_max,
        cpu=load.cpu if load else 0.0,
        memory=load.memory if load else 0.0,
        slots_in_stock=load.slots_in_stock if load else 0,
    )


def file(path: str, entry: manifest.Entry) -> workspaces_pb2.File:
    """Return a workspace entry; bytes of its name that are not UTF-8 become question marks."""
    regular = entry.kind is manifest.Kind.FILE
    return workspaces_pb2.File(
        path=path.encode(errors="replace").decode(),
        kind=_FILE_KIND[entry.kind],
        size_bytes=entry.size_bytes,
        mode=entry.mode,
        digest=entry.digest if regular else "",
        target=entry.target.decode(errors="replace"),
    )


def token_of_path(path: str) -> str:
    """Return the page token for a path, whose name need not be UTF-8."""
    return base64.urlsafe_b64encode(os.fsencode(path)).decode()


def path_of_token(token: str) -> str:
    """Return the path that a page token stands for.

    Raises:
        InvalidField: it is not a token of ours.
    """
    try:
        return os.fsdecode(base64.urlsafe_b64decode(token))
    except ValueError:
        raise errors.InvalidField("page_token is not valid", field="page_token") from None
