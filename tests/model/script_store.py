"""The real scripts on a real server as a function: contents and a call in, answer and contents out.

Before a call the keys of the one session are written as they were, after it they are read back.
Each pair of contents and call runs once, however many states of a model share it.
"""

import socket
from collections.abc import Callable, Coroutine, Hashable, Mapping
from typing import Any, NamedTuple

import hiredis

from torpor import errors
from torpor.storage import keys, records, redis_sessions, redis_wake, scripts
from torpor.testing import valkey

KEY = records.SessionKey("acme", "s")
_PARTS = (keys.head, keys.hot, keys.inbox, keys.dedup, keys.checkpoints)
_NAMES = tuple(part(KEY) for part in _PARTS)
_HINTS = keys.wake(keys.wake_shard(KEY))
#: What the model calls.
_SCRIPTS = (
    *("acquire", "release", "vacate", "commit", "seal"),
    *("create", "delete", "enqueue", "hot", "unhint"),
)
_READ_BYTES = 1 << 16


class Contents(NamedTuple):
    """Everything that the store holds of the session, in a form that can be compared."""

    head: tuple[tuple[bytes, bytes], ...] = ()
    #: Entry id and value.
    hot: tuple[tuple[bytes, bytes], ...] = ()
    inbox: tuple[bytes, ...] = ()
    dedup: tuple[tuple[bytes, bytes], ...] = ()
    #: Beginning with the newest state.
    checkpoints: tuple[bytes, ...] = ()
    #: The score of the wake hint.
    hint: bytes | None = None


class Answer(NamedTuple):
    """What a call returned, and the number of the contents that it left."""

    #: What the operation returns, or the name of the error that it raised.
    value: Any
    store: int
    refused: bool = False


#: What is called: a coroutine function of the parts below and of hashable arguments.
Operation = Callable[..., Coroutine[Any, Any, Any]]


class Stopped(Exception):
    """A call was cut off before it sent what it was about to send."""

    def __init__(self, command: tuple[Any, ...]) -> None:
        super().__init__(command)
        self.command = command


class ScriptStore:
    """Numbers contents, and runs calls on them."""

    def __init__(self, server: valkey.Server, doctored: Mapping[str, Mapping[str, str]]) -> None:
        """Load the scripts, those in `doctored` with texts replaced by others."""
        self._link = _Link(server.port)
        self._wire = _Wire(self._link)
        self.contents: list[Contents] = []
        self._numbers: dict[Contents, int] = {}
        self._answers: dict[tuple[Hashable, ...], Answer] = {}
        self._on_server = -1
        for name in _SCRIPTS:
            real = scripts.script(name)
            body = real._body.decode()
            for old, new in doctored.get(name, {}).items():
                if old not in body:
                    raise ValueError(f"{name} has no {old}")
                body = body.replace(old, new)
            (digest,) = self._link.exchange([("SCRIPT", "LOAD", body)])
            self._wire.digests[real._digest] = digest.decode()
        self.sessions = redis_sessions.RedisSessions(self._wire)  # type: ignore[arg-type]
        self.time = _Time()
        self.wake = redis_wake.RedisWakeIndex(
            self._wire,  # type: ignore[arg-type]
            self.time,  # type: ignore[arg-type]
            fraction=lambda: 0,
        )
        self.empty = self.number(Contents())

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    @property
    def calls(self) -> int:
        """How many different calls on different contents there were."""
        return len(self._answers)

    def number(self, contents: Contents) -> int:
        """Return the number that stands for these contents."""
        number = self._numbers.setdefault(contents, len(self.contents))
        if number == len(self.contents):
            self.contents.append(contents)
        return number

    def run(self, store: int, operation: Operation, *arguments: Hashable) -> Answer:
        """Return what becomes of a call on the contents of that number."""
        asked = (store, operation, arguments)
        answer = self._answers.get(asked)
        if answer is None:
            answer = self._answers[asked] = self._run(store, operation, arguments)
        return answer

    def _run(self, store: int, operation: Operation, arguments: tuple[Hashable, ...]) -> Answer:
        if self._on_server != store:
            self._link.exchange(_writes(self.contents[store]))
        value, refused = None, False
        try:
            operation(self, *arguments).send(None)
            raise AssertionError("nothing here waits")
        except StopIteration as done:
            value = done.value
        except errors.TorporError as error:
            value, refused = type(error).__name__, True
        self._on_server = self.number(_contents(self._link.exchange(_READS)))
        return Answer(value, self._on_server, refused)

    async def look_at_hint(self) -> bytes | None:
        """Do what `clear` does up to its last step; return the score that it would compare."""
        self._wire.stop_before_script = True
        try:
            await self.wake.clear(KEY)
        except Stopped as stopped:
            score: bytes = stopped.command[-1]
            return score
        finally:
            self._wire.stop_before_script = False
        return None

    async def unhint(self, score: bytes) -> None:
        """Do the last step of `clear`."""
        await scripts.script("unhint").run(
            self._wire,  # type: ignore[arg-type]
            (_HINTS,),
            (str(KEY), score),
        )


class _Time:
    at_ms = 0

    def now_ms(self) -> int:
        return self.at_ms


class _Wire:
    """`redis_wire.Wire` without waiting, for one connection."""

    def __init__(self, link: "_Link") -> None:
        self._link = link
        #: Of the real script → of the one that runs.
        self.digests: dict[str, str] = {}
        self.stop_before_script = False

    async def read(self, *commands: tuple[Any, ...], **_: Any) -> list[Any]:
        sent = []
        for command in commands:
            if command[0] == "EVALSHA":
                if self.stop_before_script:
                    raise Stopped(command)
                command = ("EVALSHA", self.digests[command[1]], *command[2:])
            sent.append(command)
        return self._link.exchange(sent)

    write = read_durable = read

    async def settle(self) -> None:
        """Nothing waits here."""


class _Link:
    """One connection that blocks."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def exchange(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        self._socket.sendall(b"".join(hiredis.pack_command(command) for command in commands))
        reader, replies = hiredis.Reader(), list[Any]()
        while len(replies) < len(commands):
            reply = reader.gets()
            if reply is False:
                reader.feed(self._socket.recv(_READ_BYTES))
                continue
            if isinstance(reply, Exception):
                raise reply
            replies.append(reply)
        return replies


_READS: list[tuple[Any, ...]] = [
    ("HGETALL", _NAMES[0]),
    ("XRANGE", _NAMES[1], "-", "+"),
    ("LRANGE", _NAMES[2], 0, -1),
    ("HGETALL", _NAMES[3]),
    ("LRANGE", _NAMES[4], 0, -1),
    ("ZSCORE", _HINTS, str(KEY)),
]


def _contents(replies: list[Any]) -> Contents:
    head, hot, inbox, dedup, checkpoints, hint = replies
    return Contents(
        head=tuple(sorted(zip(head[::2], head[1::2], strict=True))),
        hot=tuple((entry, fields[1]) for entry, fields in hot),
        inbox=tuple(inbox),
        dedup=tuple(sorted(zip(dedup[::2], dedup[1::2], strict=True))),
        checkpoints=tuple(checkpoints),
        hint=hint,
    )


def _writes(contents: Contents) -> list[tuple[Any, ...]]:
    head, hot, inbox, dedup, checkpoints = _NAMES
    commands: list[tuple[Any, ...]] = [("DEL", *_NAMES, _HINTS)]
    if contents.head:
        commands.append(("HSET", head, *(word for pair in contents.head for word in pair)))
    commands += [("XADD", hot, entry, "e", value) for entry, value in contents.hot]
    if contents.inbox:
        commands.append(("RPUSH", inbox, *contents.inbox))
    if contents.dedup:
        commands.append(("HSET", dedup, *(word for pair in contents.dedup for word in pair)))
    if contents.checkpoints:
        commands.append(("RPUSH", checkpoints, *contents.checkpoints))
    if contents.hint is not None:
        commands.append(("ZADD", _HINTS, contents.hint, str(KEY)))
    return commands
