"""What session code prints: captured by turn, bounded, and logged in two files that take turns."""

import io
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from torpor import limits
from torpor.actors import output
from torpor.storage import records


@pytest.fixture
def log(tmp_path: pathlib.Path) -> Iterator[output.SessionLog]:
    """A session's log in the test's folder."""
    made = output.SessionLog(tmp_path, epoch=3)
    yield made
    made.close()


Capture = Callable[[], output.Captures]


@pytest.fixture
def capture(log: output.SessionLog, monkeypatch: pytest.MonkeyPatch) -> Capture:
    """A function that captures both streams until the test's end."""

    def begin() -> output.Captures:
        # Called by the test itself: pytest changes the streams between fixtures and test.
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, getattr(sys, name))
        return output.Captures(log)

    return begin


def _logged(folder: pathlib.Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("*.log")))


def test_streams_are_kept_apart_and_taken_once(capture: Capture, tmp_path: pathlib.Path) -> None:
    """A turn's text is returned by stream, once; silence is nothing."""
    captures = capture()
    assert captures.take() is None
    assert sys.stdout.encoding.lower().startswith("utf")
    sys.stdout.write("out\n")
    sys.stderr.write("err\n")
    assert captures.take() == {"stdout": "out\n", "stderr": "err\n"}
    assert captures.take() is None
    assert _logged(tmp_path) == "out\nerr\n"


def test_text_beyond_the_bound_is_counted(capture: Capture) -> None:
    """The beginning is kept, the rest counted; the next turn has its whole room again."""
    captures = capture()
    sys.stdout.write("a" * (limits.OUTPUT_CHARS_MAX - 1))
    sys.stdout.write("bcd")
    taken = captures.take()
    assert taken is not None
    assert taken["stdout"] == "a" * (limits.OUTPUT_CHARS_MAX - 1) + "b"
    assert taken["stdout_dropped"] == 2
    sys.stdout.write("x" * limits.OUTPUT_CHARS_MAX)
    assert captures.take() == {"stdout": "x" * limits.OUTPUT_CHARS_MAX}


def test_threads_lose_nothing(capture: Capture) -> None:
    """Lines that several threads print are all there."""
    captures = capture()
    threads = [
        threading.Thread(target=lambda: [sys.stdout.write("line\n") for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert captures.take() == {"stdout": "line\n" * 800}


def test_children_get_a_real_descriptor(
    log: output.SessionLog, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """A child process may be given the captured stream: it writes to what lies below."""
    with (tmp_path / "below").open("w") as below:
        monkeypatch.setattr(sys, "stdout", below)
        monkeypatch.setattr(sys, "stderr", below)
        captures = output.Captures(log)
        subprocess.run([sys.executable, "-c", "print('child')"], stdout=sys.stdout, check=True)
        assert sys.stdout.writable()
        sys.stdout.flush()
    assert (tmp_path / "below").read_text() == "child\n"
    assert captures.take() is None


def test_older_file_is_dropped(log: output.SessionLog, tmp_path: pathlib.Path) -> None:
    """Two files are kept, the newest, whatever was printed; a later epoch sorts after them."""
    piece = "x" * (limits.LOG_FILE_BYTES_MAX // 2 + 1)
    for number in range(10):
        log.write(f"{number}{piece}")
    files = sorted(tmp_path.glob("*.log"))
    assert len(files) == 2
    assert sum(path.stat().st_size for path in files) <= 2 * (
        limits.LOG_FILE_BYTES_MAX + len(piece)
    )
    assert "9x" in _logged(tmp_path)
    assert "0x" not in _logged(tmp_path)
    later = output.SessionLog(tmp_path, epoch=4)
    later.write("later")
    later.close()
    assert sorted(tmp_path.glob("*.log"))[-1].read_text() == "later"
    assert len(list(tmp_path.glob("*.log"))) == 2


def test_failing_disk_does_not_fail_a_print(log: output.SessionLog) -> None:
    """Text that cannot be logged is lost without an error, and odd characters are replaced."""
    log.write("lone surrogate \ud800")
    log.close()
    log.write("nobody hears it")


def test_log_that_cannot_be_opened_fails_nothing(tmp_path: pathlib.Path) -> None:
    """Where no log can be made, what is printed is dropped: the session wakes all the same."""
    (tmp_path / "file").write_text("in the way")
    log = output.SessionLog(tmp_path / "file" / "logs", epoch=1)
    log.write("lost\n")
    log.close()


def test_odd_file_names_are_escaped(capture: Capture) -> None:
    """A lone surrogate, which no event could hold, is kept as its escape."""
    captures = capture()
    captures.stdout._through = io.StringIO()
    sys.stdout.write("x\udce9\n")
    assert captures.take() == {"stdout": "x\\udce9\n"}


def test_log_lies_with_its_tenant(tmp_path: pathlib.Path) -> None:
    """The folder is one of the tenant's, by the session's id."""
    assert output.log_folder(tmp_path, records.SessionKey("acme", "chat")) == (
        tmp_path / "acme" / "logs" / "chat"
    )


def test_silent_processes_push_nothing_out(tmp_path: pathlib.Path) -> None:
    """What one process printed is there after many that printed nothing, and some that did."""
    first = output.SessionLog(tmp_path, 1)
    first.write("said once\n")
    first.close()
    for epoch in range(2, 12):
        log = output.SessionLog(tmp_path, epoch)
        if epoch % 3 == 0:
            log.write(f"epoch {epoch}\n")
        log.close()
    kept = [path.read_text() for path in sorted(tmp_path.glob("*.log"))]
    assert kept == ["said once\n", "epoch 3\n", "epoch 6\n", "epoch 9\n"]
