"""How the command line writes what people read."""

import io
import sys

import pytest

from torpor.cli import output


class Terminal(io.StringIO):
    """A terminal, as far as programs ask."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, columns: list[str], row: list[str]) -> str:
    """Return a table of one row as a terminal of 80 columns shows it."""
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setenv("COLUMNS", "80")
        patch.setenv("TERM", "dumb")
        output.table(columns, [row])
    return terminal.getvalue()


def test_a_row_of_sessions_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `sessions ls` usually shows is one line a session on 80 columns."""
    columns = ["SESSION", "AGENT", "STATUS", "RESIDENCY", "EVENTS", "UPDATED"]
    row = ["ses-wgqlxjwz6loa4473", "notebook@1", "running", "on node-1", "14", output.minute(0)]
    assert drawn(monkeypatch, columns, row).splitlines()[-1].split() == " ".join(row).split()


def test_the_name_of_a_row_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long names are, they can be copied; what is beside them is folded, not cut."""
    row = ["s" * 64, "a" * 30, "running"]
    shown = drawn(monkeypatch, ["SESSION", "AGENT", "STATUS"], row)
    assert row[0] in shown
    assert shown.count("a") == 30, shown
