"""The page that a session process shares with its node's agent."""

import os
import pathlib

import pytest

from torpor.actors import slot_board
from torpor.actors.lifecycle import Phase


def test_reader_sees_what_is_shown(tmp_path: pathlib.Path) -> None:
    """Phase, turns and quiet time follow the writer, through one open file."""
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


def test_no_board_yet(tmp_path: pathlib.Path) -> None:
    """Before the process has made its board there is nothing to read, and no error."""
    assert slot_board.SlotBoardReader.open(tmp_path / "board") is None


@pytest.mark.parametrize("content", [b"", bytes(64), b"\xff" * 64], ids=["empty", "zeros", "odd"])
def test_board_without_a_word(tmp_path: pathlib.Path, content: bytes) -> None:
    """What is not written yet, or written by somebody else, reads as booting."""
    (tmp_path / "board").write_bytes(content)
    reader = slot_board.SlotBoardReader.open(tmp_path / "board")
    assert reader is not None
    assert reader.read().phase is Phase.BOOTING
    reader.close()


def test_board_that_is_cut(tmp_path: pathlib.Path) -> None:
    """Agent code that cuts its board ends nobody else's process."""
    board = slot_board.SlotBoard(tmp_path / "board", os.getpid())
    board.show(Phase.IDLE)
    reader = slot_board.SlotBoardReader.open(tmp_path / "board")
    assert reader is not None
    os.truncate(tmp_path / "board", 0)
    assert reader.read().phase is Phase.BOOTING
    reader.close()
