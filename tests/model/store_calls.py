"""What the model asks the store, as calls of the real `Sessions` and `WakeIndex` on Redis.

A turn appends its request to the agent's memory, which is the state, and writes one event with the
request and that memory. So the events alone tell whether state and history ever part.
"""

import msgspec
from script_store import KEY, Contents, ScriptStore

from torpor import errors, messages
from torpor.storage import record_codec, records

TURN = messages.AGENT_MESSAGE
#: Requests in order.
Memory = tuple[str, ...]
#: Request and the seq of its answer, 0 while it waits; in order of name.
Known = tuple[tuple[str, int], ...]


class View(msgspec.Struct, frozen=True):
    """What the store's contents mean."""

    deleted: bool
    epoch: int
    nonce: str
    #: The owner's incarnation; empty when nobody owns the session.
    incarnation: str
    version: int
    next_seq: int
    hot_from: int
    commit_id: str
    paused: bool
    memory: Memory
    known: Known
    inbox: tuple[str, ...]
    hinted: bool
    #: Request, seq, memory and commit id of each turn in the history, cold and hot.
    turns: tuple[tuple[str, int, Memory, str], ...]
    #: The versions of hot events, and their seqs.
    versions: tuple[int, ...]
    seqs: tuple[int, ...]


class Grasp(msgspec.Struct, frozen=True):
    """What a new owner was given with its claim."""

    version: int
    next_seq: int
    commit_id: str
    paused: bool
    memory: Memory
    known: Known


class Write(msgspec.Struct, frozen=True):
    """A commit, as far as the model tells commits apart."""

    #: `turn`, `tidy` (an item whose request is known), `paused`, `idle`, `lost`
    #: (a report), or `probe`.
    kind: str
    epoch: int
    nonce: str
    version: int
    seq: int
    commit_id: str = ""
    request: str = ""
    #: Of the answer, when it is known already.
    answer_seq: int = 0
    #: After the turn.
    memory: Memory = ()
    #: Whether it takes its request out of the inbox.
    takes: bool = False


def view(contents: Contents) -> View:
    """Return what contents mean."""
    fields = dict(contents.head)
    if not fields or b"d" in fields:
        return View(
            *(bool(fields), int(fields.get(b"e", b"0")), "", "", 0, 1, 1, "", False, (), ()),
            *(_requests(contents.inbox), contents.hint is not None, (), (), ()),
        )
    head = record_codec.head(KEY, [word for pair in contents.head for word in pair])
    events = record_codec.hot_events([(entry, (b"e", value)) for entry, value in contents.hot])
    turns = [*_cold(head.cold_index), *_turns(events)]
    return View(
        deleted=False,
        epoch=head.epoch,
        nonce=head.nonce,
        incarnation=head.owner.incarnation if head.owner else "",
        version=head.version,
        next_seq=head.next_seq,
        hot_from=head.hot_from,
        commit_id=head.commit_id,
        paused=head.status is records.Status.PAUSED,
        memory=_memory(next(iter(contents.checkpoints), None)),
        known=_known(record_codec.outcomes_of([w for p in contents.dedup for w in p]), turns),
        inbox=_requests(contents.inbox),
        hinted=contents.hint is not None,
        turns=tuple(turns),
        versions=tuple(event.version for event in events),
        seqs=tuple(event.seq for event in events),
    )


async def create(store: ScriptStore) -> None:
    """Make the session."""
    await store.sessions.create(
        records.NewSession(key=KEY, agent="agent", agent_version=1, request_id="new", created_ms=0)
    )


async def acquire(store: ScriptStore, epoch: int, incarnation: str, nonce: str, who: str) -> Grasp:
    """Claim on what was observed."""
    acquired = await store.sessions.acquire(
        records.Acquire(
            key=KEY,
            observed_epoch=epoch,
            observed_incarnation=incarnation,
            owner=records.Owner(node=who, incarnation=who, actor=who),
            nonce=nonce,
        )
    )
    head = acquired.head
    return Grasp(
        version=head.version,
        next_seq=head.next_seq,
        commit_id=head.commit_id,
        paused=head.status is records.Status.PAUSED,
        memory=_memory(acquired.inline_state),
        # As `Ownership.claim` does: what cold history says was done stays done.
        known=_known(acquired.outcomes, _cold(head.cold_index)),
    )


async def commit(store: ScriptStore, write: Write) -> None:
    """Commit."""
    await store.sessions.commit(_commit(write))


async def release(store: ScriptStore, epoch: int, nonce: str, version: int) -> bool:
    """Give up."""
    return await store.sessions.release(KEY, epoch=epoch, nonce=nonce, expected_version=version)


async def vacate(store: ScriptStore, epoch: int, incarnation: str, died: bool) -> bool:
    """Clear an owner."""
    return await store.sessions.vacate(KEY, epoch=epoch, incarnation=incarnation, died=died)


async def seal(store: ScriptStore, epoch: int, nonce: str, hot_from: int, upto: int) -> bool:
    """Move hot events below `upto` to cold; the index here holds them itself."""
    page = await store.sessions.hot(KEY, after=hot_from - 1, limit=upto - hot_from)
    run = [event for event in page.events if event.seq < upto]
    turns = [*_cold(page.cold_index), *_turns(run)]
    await store.sessions.seal(
        records.Seal(
            key=KEY,
            epoch=epoch,
            nonce=nonce,
            hot_from=hot_from,
            new_hot_from=upto,
            cold_index=msgspec.json.encode(turns).decode(),
            forgotten=[request for request, *_ in turns],
        )
    )
    return True


async def enqueue(store: ScriptStore, request: str) -> bool:
    """Accept durably; True if the request is done already."""
    message = messages.Message(text=request, request_id=request)
    enqueued = await store.sessions.enqueue(
        KEY, records.InboxItem(message=message, body_digest=request, at_ms=0)
    )
    known = enqueued.known
    return known is not None and known.state is not records.OutcomeState.PENDING


async def ensure(store: ScriptStore, at_ms: int) -> None:
    """Hint."""
    store.time.at_ms = at_ms
    await store.wake.ensure(KEY)


async def look(store: ScriptStore) -> bytes | None:
    """Begin to clear the hint; returns the score to compare, None if it must stay."""
    return await store.look_at_hint()


async def unhint(store: ScriptStore, score: bytes) -> None:
    """Clear the hint that had this score."""
    await store.unhint(score)


async def delete(store: ScriptStore) -> None:
    """Leave a tombstone."""
    await store.sessions.delete(KEY)


async def may_write(store: ScriptStore, epoch: int, nonce: str) -> bool:
    """Whether a commit under this epoch and nonce would be let in, whatever its writer knows."""
    try:
        head = await store.sessions.head(KEY)
        probe = Write("probe", epoch, nonce, head.version, head.next_seq, "probe")
        await store.sessions.commit(_commit(probe))
    except errors.TorporError:
        return False
    return True


def _commit(write: Write) -> records.Commit:
    turn = write.kind == "turn"
    events, outcomes = list[messages.Event](), dict[str, records.Outcome]()
    if turn or write.kind in ("paused", "idle", "lost"):
        data = {"request": write.request, "memory": write.memory, "commit": write.commit_id}
        kind = TURN if turn else messages.SESSION_RECOVERED
        events = [
            messages.Event(seq=write.seq, type=kind, data=data, version=write.version + 1, at_ms=0)
        ]
    if write.request:
        outcomes[write.request] = records.Outcome(
            body_digest=write.request,
            state=records.OutcomeState.DONE,
            version=write.version + 1,
            seq=write.seq if turn else write.answer_seq,
        )
    reference = records.CheckpointRef(
        version=write.version + 1,
        epoch=write.epoch,
        origin=KEY.session,
        state="digest",
        state_bytes=1,
        inline=True,
    )
    return records.Commit(
        key=KEY,
        epoch=write.epoch,
        nonce=write.nonce,
        expected_version=write.version,
        commit_id=write.commit_id,
        events=events,
        checkpoint=reference if turn else None,
        inline_state=",".join(write.memory).encode() if turn else None,
        status=records.Status(write.kind) if write.kind in ("paused", "idle") else None,
        outcomes=outcomes,
        consumed=(write.request,) if write.takes else (),
    )


def _memory(state: bytes | None) -> Memory:
    return tuple(state.decode().split(",")) if state else ()


def _requests(inbox: tuple[bytes, ...]) -> tuple[str, ...]:
    return tuple(entry.partition(b"\0")[0].decode() for entry in inbox)


def _turns(events: list[messages.Event]) -> list[tuple[str, int, Memory, str]]:
    return [
        (event.data["request"], event.seq, tuple(event.data["memory"]), event.data["commit"])
        for event in events
        if event.type == TURN
    ]


def _cold(index: str) -> list[tuple[str, int, Memory, str]]:
    if not index:
        return []
    return msgspec.json.decode(index, type=list[tuple[str, int, tuple[str, ...], str]])


def _known(outcomes: dict[str, records.Outcome], cold: list[tuple[str, int, Memory, str]]) -> Known:
    beside = {request: outcome.seq for request, outcome in outcomes.items()}
    return tuple(sorted((beside | {request: seq for request, seq, *_ in cold}).items()))
