"""The service `torpor.v1.Sessions`: checks fields, calls the router, converts the answer."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from torpor import errors, ids, limits
from torpor.actors import protocol
from torpor.router import call, convert, fields, session_logs
from torpor.storage import history, records
from torpor.v1 import sessions_pb2, sessions_pb2_grpc

if TYPE_CHECKING:
    import pathlib
    from collections.abc import AsyncIterator

    from torpor import clock
    from torpor.router import cluster_view, control, interceptors, routing, waking, watching
    from torpor.storage import blobs, store

#: Unless the client asks for another size.
SESSIONS_PAGE_DEFAULT = 50
EVENTS_PAGE_DEFAULT = 100


class SessionsService(sessions_pb2_grpc.SessionsServicer):
    """Sessions of the tenant that the API key names."""

    def __init__(
        self,
        *,
        stored: store.Store,
        blob_store: blobs.BlobStore,
        router: routing.Router,
        waker: waking.Waker,
        decisions: control.Control,
        watchers: watching.Watching,
        view: cluster_view.ClusterView,
        storage: pathlib.Path,
        time: clock.Clock,
    ) -> None:
        self._store = stored
        self._blobs = blob_store
        self._router = router
        self._waker = waker
        self._control = decisions
        self._watching = watchers
        self._view = view
        self._storage = storage
        self._clock = time

    async def CreateSession(
        self, request: sessions_pb2.CreateSessionRequest, context: interceptors.Context
    ) -> sessions_pb2.CreateSessionResponse:
        """Make a session."""
        tenant = call.identity.get().tenant
        request_id = fields.request_id(request.request_id)
        session_id = request.session_id or fields.session_id(request_id)
        version = await self._store.catalog.agent(
            tenant,
            ids.check_name("agent", request.agent),
            fields.at_least_zero("agent_version", request.agent_version),
        )
        new = records.NewSession(
            key=fields.session_key(session_id),
            agent=version.name,
            agent_version=version.version,
            request_id=request_id,
            created_ms=self._clock.now_ms(),
        )
        head = await self._store.sessions.create(new)
        if head.agent != version.name or request.agent_version not in (0, head.agent_version):
            raise errors.RequestIdReused(
                f"this request made session {head.key.session} of {head.agent} version "
                f"{head.agent_version}",
                session=head.key.session,
            )
        return sessions_pb2.CreateSessionResponse(session=self._session(head))

    async def GetSession(
        self, request: sessions_pb2.GetSessionRequest, context: interceptors.Context
    ) -> sessions_pb2.GetSessionResponse:
        """Return one session."""
        head = await self._store.sessions.head(fields.session_key(request.session_id))
        return sessions_pb2.GetSessionResponse(session=self._session(head))

    async def ListSessions(
        self, request: sessions_pb2.ListSessionsRequest, context: interceptors.Context
    ) -> sessions_pb2.ListSessionsResponse:
        """Return a page of sessions in order of creation."""
        heads, after = await self._store.sessions.page(
            call.identity.get().tenant,
            after=request.page_token,
            limit=fields.page_size(
                request.page_size, default=SESSIONS_PAGE_DEFAULT, size_max=limits.PAGE_SESSIONS_MAX
            ),
        )
        return sessions_pb2.ListSessionsResponse(
            sessions=[self._session(head) for head in heads], next_page_token=after
        )

    async def SendMessage(
        self, request: sessions_pb2.SendMessageRequest, context: interceptors.Context
    ) -> sessions_pb2.SendMessageResponse:
        """Hand a message to the session, or leave it in its inbox."""
        key = fields.session_key(request.session_id)
        message = fields.message(
            text=request.text,
            data_json=request.data_json,
            request_id=request.request_id,
            sender=request.sender,
        )
        digest = fields.body_digest(message)
        busy = fields.one_of("busy", request.busy, convert.BUSY)
        if request.accept_only:
            if busy is not protocol.BusyPolicy.ENQUEUE or request.min_version:
                raise errors.InvalidField(
                    "accept_only waits for no turn, so it goes with neither busy nor min_version",
                    field="accept_only",
                )
            enqueued = await self._waker.accept(key, message, body_digest=digest)
            return convert.accepted(enqueued)
        answer = await self._router.deliver(
            key,
            message,
            body_digest=digest,
            busy=busy,
            min_version=fields.at_least_zero("min_version", request.min_version),
            until=call.until.get(),
        )
        return convert.delivered(answer)

    async def WatchEvents(
        self, request: sessions_pb2.WatchEventsRequest, context: interceptors.Context
    ) -> AsyncIterator[sessions_pb2.WatchEventsResponse]:
        """Replay and follow."""
        items = self._watching.watch(
            fields.session_key(request.session_id),
            after_seq=fields.at_least_zero("after_seq", request.after_seq),
            types=frozenset(request.types),
        )
        async with contextlib.aclosing(items):
            async for item in items:
                # A watch may last for days: it ends when its API key is revoked.
                await call.identify.get()()
                yield convert.watched(item)

    async def ListEvents(
        self, request: sessions_pb2.ListEventsRequest, context: interceptors.Context
    ) -> sessions_pb2.ListEventsResponse:
        """Return a page of the history."""
        key = fields.session_key(request.session_id)
        page = await history.History(self._store.sessions, self._blobs, key).page(
            after=fields.at_least_zero("after_seq", request.after_seq),
            limit=fields.page_size(
                request.page_size, default=EVENTS_PAGE_DEFAULT, size_max=limits.PAGE_EVENTS_MAX
            ),
            types=frozenset(request.types),
        )
        return convert.event_page(page)

    async def EvictSession(
        self, request: sessions_pb2.EvictSessionRequest, context: interceptors.Context
    ) -> sessions_pb2.EvictSessionResponse:
        """Put an idle session to sleep."""
        head = await self._control.evict(
            fields.session_key(request.session_id),
            request_id=fields.request_id(request.request_id),
            until=call.until.get(),
        )
        return sessions_pb2.EvictSessionResponse(session=self._session(head))

    async def PauseSession(
        self, request: sessions_pb2.PauseSessionRequest, context: interceptors.Context
    ) -> sessions_pb2.PauseSessionResponse:
        """Let the session handle no message until it is resumed."""
        head = await self._control.pause(
            fields.session_key(request.session_id),
            request_id=fields.request_id(request.request_id),
            until=call.until.get(),
        )
        return sessions_pb2.PauseSessionResponse(session=self._session(head))

    async def ResumeSession(
        self, request: sessions_pb2.ResumeSessionRequest, context: interceptors.Context
    ) -> sessions_pb2.ResumeSessionResponse:
        """Let the session handle messages again."""
        head = await self._control.resume(
            fields.session_key(request.session_id),
            request_id=fields.request_id(request.request_id),
            until=call.until.get(),
        )
        return sessions_pb2.ResumeSessionResponse(session=self._session(head))

    async def DeleteSession(
        self, request: sessions_pb2.DeleteSessionRequest, context: interceptors.Context
    ) -> sessions_pb2.DeleteSessionResponse:
        """Delete for good."""
        fields.request_id(request.request_id)
        await self._control.delete(fields.session_key(request.session_id))
        return sessions_pb2.DeleteSessionResponse()

    async def ReadLog(
        self, request: sessions_pb2.ReadLogRequest, context: interceptors.Context
    ) -> AsyncIterator[sessions_pb2.ReadLogResponse]:
        """Stream what the session's processes printed."""
        key = fields.session_key(request.session_id)
        await self._store.sessions.head(key)
        log = session_logs.read(session_logs.folder(self._storage, key))
        async with contextlib.aclosing(log):
            async for data in log:
                yield sessions_pb2.ReadLogResponse(data=data)

    def _session(self, head: records.Head) -> sessions_pb2.Session:
        # An owner whose node is gone owns nothing that runs, though nobody has cleared it yet.
        lost = head.owner is None or self._view.gone(head.owner)
        node_name = "" if head.owner is None or lost else self._view.name(head.owner.node)
        return convert.session(head, node_name=node_name, resident=not lost)
