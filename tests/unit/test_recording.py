"""Recording operations and reading what processes recorded."""

import json
import pathlib

import pytest

from torpor import probes
from torpor.testing import recording
from torpor.testing.recording import Ending, Kind, Reply


def test_record_survives_its_process(tmp_path: pathlib.Path) -> None:
    """What was written is read again, also an operation that never ended."""
    path = tmp_path / "operations.jsonl"
    recorder = recording.Recorder(path)
    first = recorder.begin(Kind.APPEND, tenant="red", session="s1", request_id="r1")
    second = recorder.begin(Kind.READ, tenant="red", session="s1")
    ended = recorder.end(first, Ending.OK, reply=Reply(n=1, seq=3, version=2), attempts=1)
    assert recorder.operations == [ended]
    assert recorder.under_way == {second.id: second}
    assert recording.load(path) == [ended, second]
    assert second.ending is Ending.INVOKED
    recorder.close()


def test_token_is_of_one_session() -> None:
    """A token may be sent again to its session, by another delivery, and to no other one."""
    recorder = recording.Recorder(monotonic_s=iter([1.0, 2.0, 3.0]).__next__)
    sent = {"tenant": "red", "token": "one"}
    recorder.begin(Kind.APPEND, session="s1", **sent)
    recorder.begin(Kind.APPEND, session="s1", **sent)
    assert recorder.sent == {"one": recording.Sent(key="red/s1", begun_s=1.0)}
    with pytest.raises(ValueError, match="one"):
        recorder.begin(Kind.APPEND, session="s2", **sent)


def test_records_of_processes_are_read_once(tmp_path: pathlib.Path) -> None:
    """Claims and commits come once and in order of time; half a line waits for its other half."""
    held = {"session": "red/s1", "epoch": 1, "nonce": "n", "version": 1, "pid": 7}
    lines = [
        json.dumps({"point": point, "at_s": at_s, **held}).encode() + b"\n"
        for at_s, point in (
            (2.0, probes.Point.COMMIT_BEFORE),
            (3.0, probes.Point.REPLY_BEFORE),
            (4.0, probes.Point.COMMIT_AFTER),
        )
    ]
    (tmp_path / "7-1.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:20])
    (tmp_path / "8-1.jsonl").write_bytes(
        json.dumps({"point": probes.Point.ACQUIRE_AFTER, "at_s": 1.0, **held}).encode() + b"\n"
    )
    reader = recording.ProbeReader(tmp_path)
    assert [record.at_s for record in reader.new()] == [1.0, 2.0]
    with (tmp_path / "7-1.jsonl").open("ab") as file:
        file.write(lines[2][20:])
    assert [record.at_s for record in reader.new()] == [4.0]
    assert reader.new() == []
