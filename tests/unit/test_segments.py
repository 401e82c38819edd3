"""Cold segments and their index: compact, contiguous, strictly decoded."""

import pathlib
import random
import zlib

import msgspec
import pytest

from torpor import errors, limits, messages
from torpor.storage import local_blobs, records, segments


@pytest.fixture
def blobs(tmp_path: pathlib.Path) -> local_blobs.LocalBlobStore:
    """A blob store in a folder."""
    return local_blobs.LocalBlobStore(tmp_path)


def run(first: int, last: int, text: str = "hello") -> list[messages.Event]:
    """Return the events of these seqs, one millisecond apart."""
    return [
        messages.Event(
            seq=seq, type="user.message", data={"text": text}, version=seq, at_ms=1_000 + seq
        )
        for seq in range(first, last + 1)
    ]


def everything(blobs: local_blobs.LocalBlobStore, index: str) -> list[messages.Event]:
    """Return all events that an index leads to."""
    return [
        event
        for entry in segments.read_index(blobs, "acme", index)
        for event in segments.read(blobs, "acme", entry)
    ]


def packed(magic: bytes, value: object) -> bytes:
    """Return a blob with a content of the test's choice."""
    return magic + zlib.compress(msgspec.msgpack.encode(value))


def test_a_segment_comes_back() -> None:
    """All fields of all events survive, nested data too."""
    events = [
        messages.Event(
            seq=5, type="x.y", data={"a": [1, {"b": None}], "c": "é", "d": 1.5}, version=2, at_ms=9
        ),
        *run(6, 9),
    ]
    assert segments.decode(segments.encode(events)) == events


def test_sealing_appends(blobs: local_blobs.LocalBlobStore) -> None:
    """Many seals of different lengths leave one contiguous history, in few segments."""
    index, end = "", 0
    for count in (1, 16, 20, 240, 300, 3, 513, 7):
        index = segments.seal(blobs, "acme", index, run(end + 1, end + count))
        end += count
    assert everything(blobs, index) == run(1, end)
    entries = segments.read_index(blobs, "acme", index)
    assert all(
        entry.last_seq - entry.first_seq < limits.SEGMENT_EVENTS_MAX
        and entry.last_at_ms == 1_000 + entry.last_seq
        for entry in entries
    )
    assert len(entries) <= 8


def test_short_seals_are_merged(blobs: local_blobs.LocalBlobStore) -> None:
    """A session that is evicted after every few events does not leave a segment each time."""
    index = ""
    for first in range(1, 1_601, 16):
        index = segments.seal(blobs, "acme", index, run(first, first + 15))
    entries = segments.read_index(blobs, "acme", index)
    assert everything(blobs, index) == run(1, 1_600)
    assert len(entries) <= 1_600 // (limits.SEGMENT_EVENTS_MAX // 2) + 1


def test_sealing_leaves_old_blobs_alone(blobs: local_blobs.LocalBlobStore) -> None:
    """A reader that still holds the index before sees the history of that moment."""
    old = segments.seal(blobs, "acme", "", run(1, 10))
    segments.seal(blobs, "acme", old, run(11, 20))
    assert everything(blobs, old) == run(1, 10)


def test_sealing_nothing_changes_nothing(blobs: local_blobs.LocalBlobStore) -> None:
    """No events, no blob."""
    old = segments.seal(blobs, "acme", "", run(1, 10))
    assert segments.seal(blobs, "acme", old, []) == old
    assert segments.seal(blobs, "acme", "", []) == ""


@pytest.mark.parametrize("events", [run(12, 20), run(10, 20), run(11, 12) + run(14, 15)])
def test_a_gap_is_never_sealed(
    blobs: local_blobs.LocalBlobStore, events: list[messages.Event]
) -> None:
    """Events that do not follow the index are refused."""
    index = segments.seal(blobs, "acme", "", run(1, 10))
    with pytest.raises(errors.HistoryGap):
        segments.seal(blobs, "acme", index, events)


def test_large_events_get_segments_of_their_own(blobs: local_blobs.LocalBlobStore) -> None:
    """A segment's size is bounded also when its events are of the largest kind."""
    events = run(1, 5, text="x" * (limits.EVENT_BYTES_MAX - 100))
    index = segments.seal(blobs, "acme", "", events)
    assert everything(blobs, index) == events
    assert len(segments.read_index(blobs, "acme", index)) == 3


def test_bytes_written_stay_near_the_compressed_size(blobs: local_blobs.LocalBlobStore) -> None:
    """256 events of about 200 bytes of text: segment and index cost little beyond zlib's own."""
    words = random.Random(1)
    alphabet = [bytes(words.choices(range(97, 123), k=6)).decode() for _ in range(2_000)]
    events = [
        msgspec.structs.replace(event, data={"text": " ".join(words.choices(alphabet, k=29))})
        for event in run(1, 256)
    ]
    texts = "".join(event.data["text"] for event in events).encode()
    index = segments.seal(blobs, "acme", "", events)
    [entry] = segments.read_index(blobs, "acme", index)
    written = sum(
        len(blobs.get("acme", digest, bytes_max=1 << 20)) for digest in (entry.digest, index)
    )
    assert len(texts) / 256 == pytest.approx(202, abs=2)
    assert written < len(zlib.compress(texts)) * 1.2
    assert written / 256 < 120


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"torpidx1" + zlib.compress(b"\x90"),
        packed(b"torpseg1", []),
        packed(b"torpseg1", [[1, "x.y", {}, 1]]),
        packed(b"torpseg1", [[1, "x.y", {}, 1, "1"]]),
        packed(b"torpseg1", [[1, "x.y", {}, 1, 1], [3, "x.y", {}, 1, 1]]),
        packed(b"torpseg1", [[seq, "x.y", {}, 1, 1] for seq in range(1, 300)]),
        packed(b"torpseg1", [[1, "x.y", {"a": "x" * (9 << 20)}, 1, 1]]),
        b"torpseg1" + b"not zlib at all",
        segments.encode(run(1, 9))[:-1],
        segments.encode(run(1, 9)) + b"\0",
    ],
)
def test_a_wrong_segment_is_refused(blob: bytes) -> None:
    """Torn, lengthened, swollen, oddly shaped or with a gap: nothing of it is used."""
    with pytest.raises(errors.BlobCorrupt):
        segments.decode(blob)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[2, 5, 0, b"x" * 32]],
        [[1, 5, 0, b"x" * 32], [7, 9, 0, b"x" * 32]],
        [[1, 0, 0, b"x" * 32]],
        [[1, 5, 0, b"x" * 31]],
        [[1, 5, 0]],
    ],
)
def test_a_wrong_index_is_refused(rows: object) -> None:
    """An index is contiguous from event 1 or no index."""
    with pytest.raises(errors.BlobCorrupt):
        segments.decode_index(packed(b"torpidx1", rows))


def test_a_segment_must_be_the_one_that_the_index_means(
    blobs: local_blobs.LocalBlobStore,
) -> None:
    """A blob that hashes well but holds another run is refused."""
    index = segments.seal(blobs, "acme", "", run(1, 10))
    [entry] = segments.read_index(blobs, "acme", index)
    with pytest.raises(errors.BlobCorrupt, match="1 to 10, its index says 1 to 11"):
        segments.read(blobs, "acme", msgspec.structs.replace(entry, last_seq=11))


def test_an_index_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The history's end is an error that says so, before anything is written."""
    monkeypatch.setattr(segments, "INDEX_ROWS_MAX", 1)
    entry = segments.IndexEntry(first_seq=1, last_seq=1, last_at_ms=0, digest="b3-" + "0" * 64)
    with pytest.raises(errors.ResourceExhausted):
        segments.encode_index([entry, entry])


def test_outcomes_are_rebuilt_from_events() -> None:
    """An answer to a request id makes an outcome; anything else makes none."""

    def event(seq: int, type_: str, **data: str) -> messages.Event:
        return messages.Event(seq=seq, type=type_, data=data, version=seq // 2, at_ms=seq * 10)

    events = [
        event(1, "session.created", request_id="r0"),
        event(2, "user.message", request_id="r1", body_digest="d1", text="x"),
        event(3, "agent.message", request_id="r1", body_digest="d1", text="y"),
        event(4, "user.message", request_id="r2", body_digest="d2"),
        event(5, "agent.output", request_id="r2"),
        event(6, "agent.error", request_id="r2", body_digest="d2"),
        event(7, "agent.message"),
        event(8, "user.message", request_id="r3", body_digest="d3"),
    ]
    assert segments.outcomes_of(events) == {
        "r1": records.Outcome(
            body_digest="d1", state=records.OutcomeState.DONE, version=1, seq=3, at_ms=30
        ),
        "r2": records.Outcome(
            body_digest="d2", state=records.OutcomeState.FAILED, version=3, seq=6, at_ms=60
        ),
    }
