"""Cold history: runs of events in compressed blobs, and the index that lists them.

A segment holds one contiguous run of events, the index one row per segment from seq 1 on. Both are
immutable; sealing writes a new last segment and a new index, which a script then names in the head.
All functions that take a `BlobStore` block: call them from a thread when on an event loop.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from torpor import errors, limits, messages
from torpor.storage import blobs, digests, records

_SEGMENT_MAGIC = b"torpseg1"
_INDEX_MAGIC = b"torpidx1"

#: A segment's events, encoded: two of the largest events; what a reader must be able to hold.
SEGMENT_BYTES_MAX = 2 * limits.EVENT_BYTES_MAX
#: Around the events of a segment or an index: magic, lengths, and what zlib adds to random bytes.
_SLACK_BYTES = 64 << 10
_PLAIN_BYTES_MAX = SEGMENT_BYTES_MAX + _SLACK_BYTES
_BLOB_BYTES_MAX = _PLAIN_BYTES_MAX + _SLACK_BYTES
#: 16 million events; at some 45 bytes a row the index is then as large as one small file.
INDEX_ROWS_MAX = 65_536
_INDEX_BYTES_MAX = INDEX_ROWS_MAX * 64

#: What an event becomes inside a segment: its fields in order, without their names.
_Row = tuple[int, str, dict[str, Any], int, int]
_IndexRow = tuple[int, int, int, bytes]
_T = TypeVar("_T")

_ANSWERS = {
    messages.AGENT_MESSAGE: records.OutcomeState.DONE,
    messages.AGENT_ERROR: records.OutcomeState.FAILED,
}


class IndexEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Where one run of events lies."""

    first_seq: int
    last_seq: int
    #: The newest `at_ms` of its events.
    last_at_ms: int
    #: The segment's blob.
    digest: str


def encode(events: Sequence[messages.Event]) -> bytes:
    """Return the blob of one contiguous run of at most `SEGMENT_EVENTS_MAX` events.

    Raises:
        HistoryGap: the run is not contiguous.
        ResourceExhausted: it is larger than a reader would accept.
    """
    check_run(events, events[0].seq)
    rows = [(event.seq, event.type, event.data, event.version, event.at_ms) for event in events]
    plain = msgspec.msgpack.encode(rows)
    if len(plain) > _PLAIN_BYTES_MAX or len(rows) > limits.SEGMENT_EVENTS_MAX:
        raise errors.ResourceExhausted(
            f"a history segment of {len(rows)} events in {len(plain)} bytes is too large"
        )
    return _SEGMENT_MAGIC + zlib.compress(plain)


def decode(data: bytes) -> list[messages.Event]:
    """Return the events of a segment.

    Raises:
        BlobCorrupt: it is no segment, too large when unpacked, or not contiguous.
    """
    rows = _unpack(data, _SEGMENT_MAGIC, _PLAIN_BYTES_MAX, list[_Row])
    if not 0 < len(rows) <= limits.SEGMENT_EVENTS_MAX:
        raise errors.BlobCorrupt(f"a history segment has {len(rows)} events")
    if any(row[0] != rows[0][0] + offset for offset, row in enumerate(rows)):
        raise errors.BlobCorrupt("the events of a history segment are not contiguous")
    return [
        messages.Event(seq=seq, type=type_, data=body, version=version, at_ms=at_ms)
        for seq, type_, body, version, at_ms in rows
    ]


def encode_index(entries: Sequence[IndexEntry]) -> bytes:
    """Return the blob of an index.

    Raises:
        ResourceExhausted: it would have more than `INDEX_ROWS_MAX` rows.
    """
    if len(entries) > INDEX_ROWS_MAX:
        raise errors.ResourceExhausted(
            f"the history has {len(entries)} segments, the limit is {INDEX_ROWS_MAX}: "
            "start a new session"
        )
    rows = [
        (entry.first_seq, entry.last_seq, entry.last_at_ms, digests.to_bytes(entry.digest))
        for entry in entries
    ]
    return _INDEX_MAGIC + zlib.compress(msgspec.msgpack.encode(rows))


def decode_index(data: bytes) -> list[IndexEntry]:
    """Return the entries of an index: at least one, contiguous from seq 1.

    Raises:
        BlobCorrupt: it is no index, or its rows are not contiguous.
    """
    rows = _unpack(data, _INDEX_MAGIC, _INDEX_BYTES_MAX, list[_IndexRow])
    expected = 1
    for first, last, _, raw in rows:
        if first != expected or last < first or len(raw) != 32:
            raise errors.BlobCorrupt(f"a history index has a wrong row at event {expected}")
        expected = last + 1
    if not rows:
        raise errors.BlobCorrupt("a history index is empty")
    return [
        IndexEntry(first_seq=first, last_seq=last, last_at_ms=at_ms, digest=digests.from_bytes(raw))
        for first, last, at_ms, raw in rows
    ]


def read(store: blobs.BlobStore, tenant: str, entry: IndexEntry) -> list[messages.Event]:
    """Return the events of one segment.

    Raises:
        BlobCorrupt: also when the segment holds another run than the index says.
        BlobMissing, StorageUnavailable
    """
    data = store.get(tenant, entry.digest, bytes_max=_BLOB_BYTES_MAX)
    events = decode(data)
    if (events[0].seq, events[-1].seq) != (entry.first_seq, entry.last_seq):
        raise errors.BlobCorrupt(
            f"a history segment holds {events[0].seq} to {events[-1].seq}, "
            f"its index says {entry.first_seq} to {entry.last_seq}",
            digest=entry.digest,
        )
    return events


def read_index(store: blobs.BlobStore, tenant: str, digest: str) -> list[IndexEntry]:
    """Return the entries of the index of this digest, none for the empty digest.

    Raises:
        BlobCorrupt, BlobMissing, StorageUnavailable
    """
    if not digest:
        return []
    return decode_index(store.get(tenant, digest, bytes_max=_INDEX_BYTES_MAX))


def seal(
    store: blobs.BlobStore, tenant: str, cold_index: str, events: Sequence[messages.Event]
) -> str:
    """Write the events that follow the index, and return the digest of the index with them.

    The last segment is written anew when it has room, so that short visits do not leave a segment
    each. Nothing is changed before the head names the new index; everything is durable on return.

    Raises:
        HistoryGap: the events do not follow the index's last one.
        BlobCorrupt, BlobMissing, StorageFull, StorageUnavailable
    """
    entries = read_index(store, tenant, cold_index)
    if not events:
        return cold_index
    check_run(events, entries[-1].last_seq + 1 if entries else 1)
    rest = list(events)
    if entries and _has_room(entries[-1]):
        rest = read(store, tenant, entries.pop()) + rest
    with store.upload(tenant) as upload:
        for run in _runs(rest):
            entry = IndexEntry(
                first_seq=run[0].seq,
                last_seq=run[-1].seq,
                last_at_ms=max(event.at_ms for event in run),
                digest=upload.put(encode(run)),
            )
            entries.append(entry)
        return upload.put(encode_index(entries))


def outcomes_of(events: Iterable[messages.Event]) -> dict[str, records.Outcome]:
    """Return what became of the requests that are answered among the events."""
    return {
        str(event.data["request_id"]): records.Outcome(
            body_digest=str(event.data.get("body_digest", "")),
            state=_ANSWERS[event.type],
            version=event.version,
            seq=event.seq,
            at_ms=event.at_ms,
        )
        for event in events
        if event.type in _ANSWERS and event.data.get("request_id")
    }


def check_run(events: Sequence[messages.Event], first_seq: int) -> None:
    """Check that the events begin with `first_seq` and leave out none.

    Raises:
        HistoryGap
    """
    for expected, event in enumerate(events, start=first_seq):
        if event.seq != expected:
            raise errors.HistoryGap(
                f"event {expected} is missing from the history: {event.seq} stands in its place",
                seq=expected,
            )


def _has_room(entry: IndexEntry) -> bool:
    # Past half, writing the old events once more costs more than a segment that stays short.
    return entry.last_seq - entry.first_seq + 1 <= limits.SEGMENT_EVENTS_MAX // 2


def _runs(events: Sequence[messages.Event]) -> Iterable[list[messages.Event]]:
    run: list[messages.Event] = []
    run_bytes = 0
    for event in events:
        event_bytes = len(msgspec.msgpack.encode(event))
        full = len(run) == limits.SEGMENT_EVENTS_MAX or run_bytes + event_bytes > SEGMENT_BYTES_MAX
        if run and full:
            yield run
            run, run_bytes = [], 0
        run.append(event)
        run_bytes += event_bytes
    yield run


def _unpack(data: bytes, magic: bytes, bytes_max: int, shape: type[_T]) -> _T:
    if not data.startswith(magic):
        raise errors.BlobCorrupt(f"a history blob does not begin with {magic!r}")
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(data[len(magic) :], bytes_max)
        if not inflate.eof or inflate.unused_data:
            raise errors.BlobCorrupt(
                f"a history blob is torn or larger than {bytes_max} bytes when unpacked"
            )
        return msgspec.msgpack.decode(plain, type=shape)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise errors.BlobCorrupt(f"a history blob cannot be decoded: {error}") from error
