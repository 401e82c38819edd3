"""What clients did and what they were told: the history that `torpor.testing.invariants` judges.

    recorder = Recorder(pathlib.Path("operations.jsonl"))
    begun = recorder.begin(Kind.APPEND, tenant="red", session="s1", token="t1", request_id="r1")
    recorder.end(begun, Ending.OK, reply=Reply(n=1, chain="…", seq=3, version=1))

`torpor.testing.witness_client` does this for the witness agent. `ProbeReader` reads what the
processes of the deployment recorded themselves (`torpor.probes`).
"""

import enum
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from torpor import messages, probes


class Kind(enum.StrEnum):
    """What a client asked for."""

    #: A turn that appends a token, and its reply.
    APPEND = "append"
    #: The same turn, accepted into the inbox and not awaited.
    ACCEPT = "accept"
    #: A turn that only says what is there.
    READ = "read"
    #: The history, from some event to its end.
    EVENTS = "events"
    #: The session's description.
    GET = "get"
    EVICT = "evict"
    PAUSE = "pause"
    RESUME = "resume"
    CREATE = "create"
    DELETE = "delete"
    #: Anything at all on a session of another tenant.
    FOREIGN = "foreign"


class Ending(enum.StrEnum):
    """How an operation went, as far as its client can know."""

    #: Under way.
    INVOKED = "invoke"
    OK = "ok"
    #: Certainly without effect, whatever attempts were made.
    FAIL = "fail"
    #: It may have had its effect, may yet have it, or never.
    UNKNOWN = "unknown"


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an operation was told. Of a witness's turn all fields, of others those they know."""

    #: Tokens in the history, this turn's included, and the digest of them all.
    n: int = 0
    chain: str = ""
    #: The same of the agent's state and of its file.
    state_n: int = 0
    state_chain: str = ""
    file_n: int = 0
    file_chain: str = ""
    #: Of the event that holds the answer; of `get` and `events` the newest event's.
    seq: int = 0
    #: Of the commit that contains it; of `get` the session's.
    version: int = 0
    #: Whether the request had been handled before.
    repeated: bool = False


class Seen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event as a client saw it."""

    seq: int
    type: str
    version: int
    #: Of a `witness.token`.
    token: str = ""
    chain: str = ""


class Operation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that a client wanted, however many attempts it took."""

    id: int
    kind: Kind
    tenant: str
    session: str
    #: Address of the gateway that was asked last.
    gateway: str = ""
    #: Operations with one request id are one request, delivered several times.
    request_id: str = ""
    #: What it appends, if it does; unique in a run.
    token: str = ""
    #: On the machine's monotonic clock.
    begun_s: float
    #: None while it is under way.
    ended_s: float | None = None
    ending: Ending = Ending.INVOKED
    #: The error's reason, if the last attempt had one.
    reason: str = ""
    #: Of a failure with `HISTORY_GAP` only the version that the session has been found at.
    reply: Reply | None = None
    #: Of `events`.
    seen: tuple[Seen, ...] = ()
    #: The least version that the client asked for, which is the newest that it had seen.
    min_version: int = 0
    #: Of `events`: behind which event it looked.
    after_seq: int = 0
    attempts: int = 0

    @property
    def key(self) -> str:
        """`tenant/session`, as probes name it."""
        return f"{self.tenant}/{self.session}"


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """Where a token went, and when first."""

    #: `tenant/session`; of a foreign operation under the tenant who tried.
    key: str
    begun_s: float


class Recorder:
    """Append-only record of operations: in memory, and in a file that survives this process."""

    def __init__(
        self, path: pathlib.Path | None = None, *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._monotonic_s = monotonic_s
        self._file = path.open("ab", buffering=0) if path else None
        self._encode = msgspec.json.Encoder().encode
        #: Those that ended, in the order of their ends.
        self.operations: list[Operation] = []
        #: Those under way, by id.
        self.under_way: dict[int, Operation] = {}
        self.sent: dict[str, Sent] = {}
        self._count = 0

    def now_s(self) -> float:
        """Return the time that operations are recorded with."""
        return self._monotonic_s()

    def begin(self, kind: Kind, *, tenant: str, session: str, **fields: Any) -> Operation:
        """Record that an operation begins; call it before the first byte leaves.

        Args:
            kind: what it asks for.
            tenant: who asks.
            session: of which session; for a foreign one, still under the tenant who asks.
            fields: `gateway`, `request_id`, `token`, `min_version`, `after_seq`.

        Raises:
            ValueError: the token was sent to another session before.
        """
        self._count += 1
        operation = Operation(
            id=self._count,
            kind=kind,
            tenant=tenant,
            session=session,
            begun_s=self._monotonic_s(),
            **fields,
        )
        if operation.token:
            sent = Sent(key=operation.key, begun_s=operation.begun_s)
            if self.sent.setdefault(operation.token, sent).key != operation.key:
                raise ValueError(f"token {operation.token} was sent to another session before")
        self.under_way[operation.id] = operation
        self._write(operation)
        return operation

    def end(self, begun: Operation, ending: Ending, **fields: Any) -> Operation:
        """Record how an operation ended; `fields` are of `Operation`."""
        ended = msgspec.structs.replace(begun, ending=ending, ended_s=self._monotonic_s(), **fields)
        del self.under_way[begun.id]
        self.operations.append(ended)
        self._write(ended)
        return ended

    def close(self) -> None:
        """Close the file. What is under way stays so: its end is unknown."""
        if self._file is not None:
            self._file.close()

    def _write(self, operation: Operation) -> None:
        if self._file is not None:
            self._file.write(self._encode(operation) + b"\n")


def load(path: pathlib.Path) -> list[Operation]:
    """Return the operations of a recorder's file, in the order of their beginnings."""
    by_id: dict[int, Operation] = {}
    for line in path.read_bytes().splitlines():
        operation = msgspec.json.decode(line, type=Operation)
        by_id[operation.id] = operation
    return list(by_id.values())


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a process of the deployment recorded when it claimed a session or committed."""

    point: probes.Point
    pid: int
    #: On the machine's monotonic clock.
    at_s: float
    #: `tenant/session`.
    session: str
    epoch: int
    nonce: str
    #: Of a claim the version that it found, of a commit the one that it makes.
    version: int
    #: Of commits.
    commit_id: str = ""
    #: Request ids that the commit resolves.
    requests: tuple[str, ...] = ()


class ProbeReader:
    """Reads the records of a folder of probes again and again, each of them once."""

    #: The points whose records the checker needs.
    POINTS = (probes.Point.ACQUIRE_AFTER, probes.Point.COMMIT_BEFORE, probes.Point.COMMIT_AFTER)

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._offsets: dict[pathlib.Path, int] = {}
        self._marks = tuple(f'"{point}"'.encode() for point in self.POINTS)

    def new(self) -> list[Record]:
        """Return the claims and commits recorded since the last call, in order of time."""
        found = [record for path in self._folder.glob("*.jsonl") for record in self._tail(path)]
        return sorted(found, key=lambda record: record.at_s)

    def _tail(self, path: pathlib.Path) -> Iterator[Record]:
        offset = self._offsets.get(path, 0)
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
        # Half a line is a process in the middle of its write, or one that was killed there.
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[path] = offset + len(whole)
        for line in whole.splitlines():
            if any(mark in line for mark in self._marks):
                yield msgspec.json.decode(line, type=Record)


def seen(event: messages.Event, *, token_type: str) -> Seen:
    """Return what is to be remembered of an event that a client saw."""
    marked = event.type == token_type
    return Seen(
        seq=event.seq,
        type=event.type,
        version=event.version,
        token=str(event.data["token"]) if marked else "",
        chain=str(event.data["chain"]) if marked else "",
    )
