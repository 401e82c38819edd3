"""The page that a session process shares with its node's agent."""

import os
import pathlib

import pytest

from torpor.actors import slot_board
from torpor.actors.lifecycle import Phase


def test_reader_sees_what_is_shown(tmp_path: pathlib.Path) -> None:
    """Phase, turns and quiet time follow the writer, through one open page."""
    board = slot_board.SlotBoard(tmp_path / "board", os.getpid())
    reader = slot_board.SlotBoardReader.open(tmp_path / "board")
    assert reader is not None
    first = reader.read()
    assert (first.pid, first.phase, first.turns) == (os.getpid(), Phase.BOOTING, 0)
    assert first.quiet_s >= 0.0
    board.show(Phase.IDLE, turns_more=2)
    board.show(Phase.WORKING)
    board.show(Phase.IDLE, turns_more=1)
    assert (reader.read().phase, reader.read().turns) == (Phase.IDLE, 3)
    reader.close()


@pytest.mark.parametrize("content", [None, b""], ids=["no file", "empty file"])
def test_no_board_yet(tmp_path: pathlib.Path, content: bytes | None) -> None:
    """Before the process has made its board there is nothing to read, and no error."""
    if content is not None:
        (tmp_path / "board").write_bytes(content)
    assert slot_board.SlotBoardReader.open(tmp_path / "board") is None


def test_board_without_a_word(tmp_path: pathlib.Path) -> None:
    """A page that is still all zeros reads as booting."""
    (tmp_path / "board").write_bytes(bytes(64))
    reader = slot_board.SlotBoardReader.open(tmp_path / "board")
    assert reader is not None
    assert reader.read().phase is Phase.BOOTING
    reader.close()
