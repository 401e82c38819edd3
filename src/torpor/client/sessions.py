"""Sessions: making, finding, speaking to and steering them."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from torpor import errors, ids, limits, messages
from torpor.client import connection, decoding, files, values, watching
from torpor.v1 import sessions_pb2

_BUSY: dict[values.Busy, sessions_pb2.BusyPolicy.ValueType] = {
    "enqueue": sessions_pb2.BUSY_POLICY_ENQUEUE,
    "reject": sessions_pb2.BUSY_POLICY_REJECT,
}


class Session:
    """A handle to one session; holds no state but its id."""

    def __init__(self, link: connection.Connection, session_id: str) -> None:
        self.id = session_id
        self.files = files.Files(link, session_id)
        self._link = link

    async def get(self, *, timeout_s: float | None = None) -> values.SessionInfo:
        """Return the session as of its last commit.

        Raises:
            SessionNotFound, SessionDeleted
        """
        response = await self._link.call(
            self._link.sessions.GetSession,
            sessions_pb2.GetSessionRequest(session_id=self.id),
            timeout_s=timeout_s,
            default_s=connection.READ_TIMEOUT_S,
        )
        return decoding.session(response.session)

    async def send(
        self,
        text: str,
        *,
        data: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        sender: str = "",
        busy: values.Busy = "enqueue",
        min_version: int = 0,
        timeout_s: float | None = None,
    ) -> values.Reply:
        """Send a message and return its reply, once the commit that contains it is durable.

        Args:
            text: the words; for a notebook, Python.
            data: anything else, JSON-like.
            request_id: the same id is handled once; a fresh one if None. Retries keep it.
            sender: who speaks; `user` if empty.
            busy: what to do if the session is in the middle of a turn: wait, or be refused.
            min_version: refuse to be answered from anything older.
            timeout_s: for everything, retries included; 11 minutes if None.

        Raises:
            TurnFailed: the agent raised an error; its ids say the event (`seq`) and `version`.
            SessionBusy, SessionPaused, SessionNotFound, SessionDeleted, MessageTooLarge
            DeadlineExceeded: the turn may go on; the same `request_id` returns its reply.
        """
        request = self._message(text, data, request_id, sender)
        request.busy = _BUSY[busy]
        request.min_version = min_version
        response = await self._link.call(
            self._link.sessions.SendMessage,
            request,
            timeout_s=timeout_s,
            default_s=connection.TURN_TIMEOUT_S,
        )
        return decoding.reply(response, self.id)

    async def post(
        self,
        text: str,
        *,
        data: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        sender: str = "",
        timeout_s: float | None = None,
    ) -> values.Accepted:
        """Send a message and return once it is durable; its turn comes later, exactly once.

        Raises:
            InboxFull, SessionNotFound, SessionDeleted, MessageTooLarge
        """
        request = self._message(text, data, request_id, sender)
        request.accept_only = True
        response = await self._link.call(
            self._link.sessions.SendMessage,
            request,
            timeout_s=timeout_s,
            default_s=connection.READ_TIMEOUT_S,
        )
        return values.Accepted(request_id=request.request_id, repeated=response.repeated)

    def watch(
        self, after_seq: int = 0, *, types: Sequence[str] = ()
    ) -> AsyncGenerator[messages.Event | values.Delta]:
        """Yield events with `seq > after_seq` (of `types`, if given) and follow, without end.

        Lost connections are made again from the last event, so nothing is missing or repeated; what
        is provisional (`Delta`) may be.

        Raises:
            SessionNotFound, SessionDeleted
            Unavailable: no gateway could be reached for `watching.FRUITLESS_MAX` tries.
        """
        return watching.watch(self._link, self.id, after_seq=after_seq, types=tuple(types))

    async def history(
        self,
        after_seq: int = 0,
        *,
        limit: int = 100,
        types: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> values.HistoryPage:
        """Return up to `limit` (at most 500) events with `seq > after_seq`, of `types` if given."""
        response = await self._link.call(
            self._link.sessions.ListEvents,
            sessions_pb2.ListEventsRequest(
                session_id=self.id, after_seq=after_seq, page_size=limit, types=types
            ),
            timeout_s=timeout_s,
            default_s=connection.READ_TIMEOUT_S,
        )
        return values.HistoryPage(
            events=[decoding.event(event) for event in response.events],
            next_after_seq=response.next_after_seq,
        )

    async def events(
        self, after_seq: int = 0, *, types: Sequence[str] = ()
    ) -> AsyncGenerator[messages.Event]:
        """Yield all events with `seq > after_seq` (of `types`, if given), up to the newest."""
        while True:
            page = await self.history(after_seq, limit=limits.PAGE_EVENTS_MAX, types=types)
            for event in page.events:
                yield event
            after_seq = page.next_after_seq
            if not after_seq:
                return

    async def logs(self, *, timeout_s: float | None = None) -> bytes:
        """Return what the session's processes printed, oldest first: at most two log files."""
        request = sessions_pb2.ReadLogRequest(session_id=self.id)

        async def once(left_s: float) -> bytes:
            stream = self._link.stream(self._link.sessions.ReadLog, request, timeout_s=left_s)
            async with aclosing(stream) as responses:
                return b"".join([response.data async for response in responses])

        return await self._link.retrying(
            once, timeout_s=timeout_s, default_s=connection.TRANSFER_TIMEOUT_S
        )

    async def evict(self, *, timeout_s: float | None = None) -> values.SessionInfo:
        """Put the session to sleep after the turn under way; succeeds if it sleeps already.

        Raises:
            NotEvictable: messages keep arriving.
        """
        response = await self._link.call(
            self._link.sessions.EvictSession,
            sessions_pb2.EvictSessionRequest(session_id=self.id, request_id=ids.random_id("req")),
            timeout_s=timeout_s,
            default_s=connection.CONTROL_TIMEOUT_S,
        )
        return decoding.session(response.session)

    async def pause(self, *, timeout_s: float | None = None) -> values.SessionInfo:
        """Let the session handle no message until it is resumed, from the turn's end on."""
        response = await self._link.call(
            self._link.sessions.PauseSession,
            sessions_pb2.PauseSessionRequest(session_id=self.id, request_id=ids.random_id("req")),
            timeout_s=timeout_s,
            default_s=connection.CONTROL_TIMEOUT_S,
        )
        return decoding.session(response.session)

    async def resume(self, *, timeout_s: float | None = None) -> values.SessionInfo:
        """Let the session handle messages again, those first that came meanwhile."""
        response = await self._link.call(
            self._link.sessions.ResumeSession,
            sessions_pb2.ResumeSessionRequest(session_id=self.id, request_id=ids.random_id("req")),
            timeout_s=timeout_s,
            default_s=connection.CONTROL_TIMEOUT_S,
        )
        return decoding.session(response.session)

    async def delete(self, *, timeout_s: float | None = None) -> None:
        """Delete the session for good; succeeds if it was deleted before."""
        await self._link.call(
            self._link.sessions.DeleteSession,
            sessions_pb2.DeleteSessionRequest(session_id=self.id, request_id=ids.random_id("req")),
            timeout_s=timeout_s,
            default_s=connection.CONTROL_TIMEOUT_S,
        )

    def _message(
        self, text: str, data: Mapping[str, Any] | None, request_id: str | None, sender: str
    ) -> sessions_pb2.SendMessageRequest:
        data_json = msgspec.json.encode(data).decode() if data else ""
        size_bytes = len(text.encode()) + len(data_json.encode())
        if size_bytes > limits.MESSAGE_BYTES_MAX:
            raise errors.MessageTooLarge(
                f"the message has {size_bytes} bytes, the limit is {limits.MESSAGE_BYTES_MAX}; "
                "write a file to the workspace and name it in the message",
                session=self.id,
            )
        return sessions_pb2.SendMessageRequest(
            session_id=self.id,
            text=text,
            data_json=data_json,
            request_id=ids.check_request_id(request_id or ids.random_id("req")),
            sender=sender,
        )


class Sessions:
    """`client.sessions`."""

    def __init__(self, link: connection.Connection) -> None:
        self._link = link

    async def create(
        self,
        agent: str,
        *,
        session_id: str = "",
        agent_version: int = 0,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Session:
        """Make a session.

        Args:
            agent: the agent's name.
            session_id: chosen by the server if empty.
            agent_version: the newest for 0.
            request_id: the same id returns the session made before.
            timeout_s: for everything, retries included.

        Raises:
            AgentNotFound, SessionExists
        """
        response = await self._link.call(
            self._link.sessions.CreateSession,
            sessions_pb2.CreateSessionRequest(
                agent=agent,
                session_id=session_id,
                agent_version=agent_version,
                request_id=request_id or ids.random_id("req"),
            ),
            timeout_s=timeout_s,
            default_s=connection.CONTROL_TIMEOUT_S,
        )
        return Session(self._link, response.session.id)

    async def get(self, session_id: str, *, timeout_s: float | None = None) -> Session:
        """Return a handle to a session that exists.

        Raises:
            SessionNotFound, SessionDeleted
        """
        session = self.handle(session_id)
        await session.get(timeout_s=timeout_s)
        return session

    def handle(self, session_id: str) -> Session:
        """Return a handle without asking whether the session exists."""
        return Session(self._link, session_id)

    async def list(
        self, *, page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[values.SessionInfo]:
        """Yield the tenant's sessions in order of creation; `timeout_s` is for each page."""
        token = ""
        while True:
            page = await self._link.call(
                self._link.sessions.ListSessions,
                sessions_pb2.ListSessionsRequest(page_size=page_size, page_token=token),
                timeout_s=timeout_s,
                default_s=connection.READ_TIMEOUT_S,
            )
            for session in page.sessions:
                yield decoding.session(session)
            token = page.next_page_token
            if not token:
                return
