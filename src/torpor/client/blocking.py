"""The same client for callers that block; what each method does is said at its async namesake."""

import pathlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torpor import messages
from torpor.client import admin, agents, client, files, retry, sessions, values
from torpor.client.loop import BackgroundLoop, background_loop


class BlockingFiles:
    """`session.files`, as `files.Files`."""

    def __init__(self, loop: BackgroundLoop, target: files.Files) -> None:
        self._loop = loop
        self._target = target

    def list(
        self, path: str = "", *, recursive: bool = False, timeout_s: float | None = None
    ) -> Generator[values.FileInfo]:
        """Yield the files of a folder."""
        return self._loop.iterate(self._target.list(path, recursive=recursive, timeout_s=timeout_s))

    def read(self, path: str, *, timeout_s: float | None = None) -> bytes:
        """Return a file's content."""
        return self._loop.run(self._target.read(path, timeout_s=timeout_s))

    def read_to(self, path: str, local: pathlib.Path, *, timeout_s: float | None = None) -> int:
        """Copy a file to `local`; returns its size in bytes."""
        return self._loop.run(self._target.read_to(path, local, timeout_s=timeout_s))

    def write(
        self,
        path: str,
        content: values.Content,
        *,
        mode: int = files.DEFAULT_MODE,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> values.Written:
        """Write a file, as a commit of its own."""
        return self._loop.run(
            self._target.write(path, content, mode=mode, request_id=request_id, timeout_s=timeout_s)
        )


class BlockingSession:
    """A handle to one session, as `sessions.Session`."""

    def __init__(self, loop: BackgroundLoop, target: sessions.Session) -> None:
        self.id = target.id
        self.files = BlockingFiles(loop, target.files)
        self._loop = loop
        self._target = target

    def get(self, *, timeout_s: float | None = None) -> values.SessionInfo:
        """Return the session as of its last commit."""
        return self._loop.run(self._target.get(timeout_s=timeout_s))

    def send(
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
        """Send a message and return its reply."""
        return self._loop.run(
            self._target.send(
                text,
                data=data,
                request_id=request_id,
                sender=sender,
                busy=busy,
                min_version=min_version,
                timeout_s=timeout_s,
            )
        )

    def post(
        self,
        text: str,
        *,
        data: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        sender: str = "",
        timeout_s: float | None = None,
    ) -> values.Accepted:
        """Send a message and return once it is durable."""
        return self._loop.run(
            self._target.post(
                text, data=data, request_id=request_id, sender=sender, timeout_s=timeout_s
            )
        )

    def watch(
        self, after_seq: int = 0, *, types: Sequence[str] = ()
    ) -> Generator[messages.Event | values.Delta]:
        """Yield events and provisional deltas, and follow, without end."""
        return self._loop.iterate(self._target.watch(after_seq, types=types))

    def history(
        self,
        after_seq: int = 0,
        *,
        limit: int = 100,
        types: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> values.HistoryPage:
        """Return one page of events."""
        return self._loop.run(
            self._target.history(after_seq, limit=limit, types=types, timeout_s=timeout_s)
        )

    def events(self, after_seq: int = 0, *, types: Sequence[str] = ()) -> Generator[messages.Event]:
        """Yield all events up to the newest."""
        return self._loop.iterate(self._target.events(after_seq, types=types))

    def logs(self, *, timeout_s: float | None = None) -> bytes:
        """Return what the session's processes printed."""
        return self._loop.run(self._target.logs(timeout_s=timeout_s))

    def evict(self, *, timeout_s: float | None = None) -> values.SessionInfo:
        """Put the session to sleep."""
        return self._loop.run(self._target.evict(timeout_s=timeout_s))

    def pause(self, *, timeout_s: float | None = None) -> values.SessionInfo:
        """Let the session handle no message until it is resumed."""
        return self._loop.run(self._target.pause(timeout_s=timeout_s))

    def resume(self, *, timeout_s: float | None = None) -> values.SessionInfo:
        """Let the session handle messages again."""
        return self._loop.run(self._target.resume(timeout_s=timeout_s))

    def delete(self, *, timeout_s: float | None = None) -> None:
        """Delete the session for good."""
        self._loop.run(self._target.delete(timeout_s=timeout_s))


class BlockingSessions:
    """`client.sessions`, as `sessions.Sessions`."""

    def __init__(self, loop: BackgroundLoop, target: sessions.Sessions) -> None:
        self._loop = loop
        self._target = target

    def create(
        self,
        agent: str,
        *,
        session_id: str = "",
        agent_version: int = 0,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> BlockingSession:
        """Make a session."""
        session = self._loop.run(
            self._target.create(
                agent,
                session_id=session_id,
                agent_version=agent_version,
                request_id=request_id,
                timeout_s=timeout_s,
            )
        )
        return BlockingSession(self._loop, session)

    def get(self, session_id: str, *, timeout_s: float | None = None) -> BlockingSession:
        """Return a handle to a session that exists."""
        session = self._loop.run(self._target.get(session_id, timeout_s=timeout_s))
        return BlockingSession(self._loop, session)

    def handle(self, session_id: str) -> BlockingSession:
        """Return a handle without asking whether the session exists."""
        return BlockingSession(self._loop, self._target.handle(session_id))

    def list(
        self, *, page_size: int = 0, timeout_s: float | None = None
    ) -> Generator[values.SessionInfo]:
        """Yield the tenant's sessions in order of creation."""
        return self._loop.iterate(self._target.list(page_size=page_size, timeout_s=timeout_s))


class BlockingAgents:
    """`client.agents`, as `agents.Agents`."""

    def __init__(self, loop: BackgroundLoop, target: agents.Agents) -> None:
        self._loop = loop
        self._target = target

    def register(
        self, import_path: str, *, name: str = "", timeout_s: float | None = None
    ) -> values.AgentInfo:
        """Register `module:Class`."""
        return self._loop.run(self._target.register(import_path, name=name, timeout_s=timeout_s))

    def list(self, *, timeout_s: float | None = None) -> Generator[values.AgentInfo]:
        """Yield the newest version of each agent."""
        return self._loop.iterate(self._target.list(timeout_s=timeout_s))


class BlockingAdmin:
    """`client.admin`, as `admin.Admin`."""

    def __init__(self, loop: BackgroundLoop, target: admin.Admin) -> None:
        self._loop = loop
        self._target = target

    def nodes(self, *, timeout_s: float | None = None) -> list[values.NodeInfo]:
        """Return all nodes by name."""
        return self._loop.run(self._target.nodes(timeout_s=timeout_s))

    def drain(self, node: str, *, timeout_s: float | None = None) -> values.NodeInfo:
        """Place no more sessions on a node and evict those on it."""
        return self._loop.run(self._target.drain(node, timeout_s=timeout_s))


class BlockingClient:
    """One connection to one gateway, as `client.Client`. Threads may share it."""

    def __init__(self, loop: BackgroundLoop, target: client.Client) -> None:
        self.sessions = BlockingSessions(loop, target.sessions)
        self.agents = BlockingAgents(loop, target.agents)
        self.admin = BlockingAdmin(loop, target.admin)


@contextmanager
def connect_sync(
    address: str,
    *,
    api_key: str | None = None,
    tenant: str | None = None,
    timeout_s: float | None = None,
    policy: retry.Policy | None = None,
) -> Generator[BlockingClient]:
    """Yield a client, as `torpor.connect_sync` says."""
    with background_loop() as loop:
        connected = client.connect(
            address, api_key=api_key, tenant=tenant, timeout_s=timeout_s, policy=policy
        )
        target = loop.run(connected.__aenter__())
        try:
            yield BlockingClient(loop, target)
        finally:
            loop.run(connected.__aexit__(None, None, None))
