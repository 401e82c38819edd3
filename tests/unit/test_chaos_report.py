"""What the battery says at its end: a row for each fault, figures, and whether it passed."""

import collections
import json
import pathlib
import sys
from typing import Any

import pytest
import rich.console

from torpor.testing.recording import Ending

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "chaos"))

import report


def an_account(name: str = "redis full", **fields: Any) -> report.Account:
    """Return the account of a fault that stood once and did no harm."""
    account = report.Account(name)
    account.runs = 1
    account.operations.update([Ending.OK])
    account.healthy_after_s = [1.0]
    for field, value in fields.items():
        setattr(account, field, value)
    return account


def totals(**fields: Any) -> report.Totals:
    """Return the totals of a run without violations."""
    return report.Totals(
        **{
            "seed": "7",
            "profile": "short",
            "command": "make chaos",
            "faults": 1,
            "operations": 10,
            "appends": 5,
            "unknown": 1,
            "violations": 0,
            "seconds": 3.0,
            **fields,
        }
    )


def test_percentiles_are_samples() -> None:
    """The median and the 99th percentile, also of a single sample."""
    assert report.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert report.percentile([float(n) for n in range(1, 201)], 0.99) == 198.0
    assert report.percentile([5.0], 0.99) == 5.0


@pytest.mark.parametrize(
    "fields",
    [
        {"violations": 1},
        {"unhealthy": 1},
        {"errors": ["run 0: RuntimeError"]},
        {"operations": collections.Counter()},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_run_passes_only_if_every_row_held(fields: dict[str, Any]) -> None:
    """A violation, a world that stayed ill, a fault that could not be injected, an idle load."""
    good = an_account().row()
    assert report.passed([good], totals())
    assert not report.passed([good, an_account("node lost", **fields).row()], totals())
    assert not report.passed([good], totals(broken_off="interrupted"))
    assert not report.passed([good], totals(violations=1))


def test_what_there_was_no_time_for_is_shown_and_does_not_fail() -> None:
    """A row without a run says so."""
    rows = [an_account().row(), report.Account("node lost").row()]
    assert report.passed(rows, totals())
    assert "not run" in shown(rows, [])


def test_the_files_hold_the_rows_and_the_figures(tmp_path: pathlib.Path) -> None:
    """`chaos.json` is a list of rows; figures and totals lie beside it."""
    account = an_account(violations=2, healthy_after_s=[1.0, 3.0])
    account.operations.update([Ending.OK, Ending.UNKNOWN])
    figure = a_figure(value=2.0, floor=4.0)
    report.write([account.row()], [figure], totals(), tmp_path)
    (row,) = json.loads((tmp_path / "chaos.json").read_text())
    assert (
        row
        | {
            "fault": "redis full",
            "runs": 1,
            "operations": 3,
            "unknown": 1,
            "violations": 2,
            "healthy_after_s": 3.0,
        }
        == row
    )
    more = json.loads((tmp_path / "chaos-figures.json").read_text())
    assert more["totals"]["seed"] == totals().seed
    assert (more["figures"][0]["ratio"], more["figures"][0]["reached"]) == (0.5, True)


def test_the_table_names_what_went_wrong() -> None:
    """Errors, figures that are missed and the durability level are all to be seen."""
    account = an_account(errors=["run 0: RuntimeError: no such node"])
    text = shown([account.row()], [a_figure(value=9.0, floor=4.0)])
    for word in ("redis full", "no such node", "2.25", "no", "durability fsync"):
        assert word in text


def a_figure(**fields: Any) -> report.Figure:
    """Return a figure with the target 1."""
    return report.Figure(
        **{"name": "again", "unit": "s", "target": 1.0, "samples": 3, "against": "leases", **fields}
    )


def shown(rows: list[report.Row], figures: list[report.Figure]) -> str:
    """Return what is printed."""
    console = rich.console.Console(width=150, color_system=None)
    with console.capture() as capture:
        report.show(rows, figures, totals(), console)
    return capture.get()
