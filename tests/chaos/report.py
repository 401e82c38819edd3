"""What a run of the battery showed: a row for each fault, figures, and the two files of them."""

import collections
import json
import math
import pathlib
from collections.abc import Iterable, Sequence

import msgspec
import rich.console
import rich.table

from torpor.testing import recording

#: The row of what happened before the first fault and after the last.
NO_FAULT = "(none)"


class Account:
    """What is counted while a fault stands, and until the world is healthy again."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        #: Times that it stood.
        self.runs = 0
        self.operations: collections.Counter[recording.Ending] = collections.Counter()
        self.violations = 0
        self.healthy_after_s: list[float] = []
        #: Times that the world was not healthy again within the bound.
        self.unhealthy = 0
        #: Why it could not be injected or healed.
        self.errors: list[str] = []
        #: Reports of a loss, for faults that may lose.
        self.losses = 0

    def row(self) -> "Row":
        """Return what there is so far as a value."""
        healthy = self.healthy_after_s
        return Row(
            fault=self.fault,
            runs=self.runs,
            operations=self.operations.total(),
            unknown=self.operations[recording.Ending.UNKNOWN],
            violations=self.violations,
            healthy_after_s=round(percentile(healthy, 0.99), 3) if healthy else None,
            healthy_after_p50_s=round(percentile(healthy, 0.5), 3) if healthy else None,
            unhealthy=self.unhealthy,
            losses_reported=self.losses,
            errors=tuple(self.errors),
        )


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One fault, all its runs together."""

    fault: str
    runs: int
    #: That began while it stood, or before the world was healthy again. Faults that stood together
    #: share theirs, and their violations.
    operations: int
    #: Of the operations: those of which no client can know whether they had their effect.
    unknown: int
    violations: int
    #: 99th percentile of the time from the heal to health; None if that never came.
    healthy_after_s: float | None
    #: The median.
    healthy_after_p50_s: float | None
    #: Runs after which the world was not healthy within the bound.
    unhealthy: int
    #: Losses that sessions and gateways told of; only some faults may have any.
    losses_reported: int
    #: Why it could not be injected or healed.
    errors: tuple[str, ...]

    @property
    def held(self) -> bool:
        """Whether nothing was violated, all was well after each run, and somebody called."""
        idle = self.runs and not self.operations
        return not (self.violations or self.unhealthy or self.errors or idle)


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Something measured, held against something else that was measured in the same run."""

    name: str
    unit: str
    value: float
    #: In the same unit.
    floor: float
    #: Of `value / floor`.
    target: float
    samples: int
    #: How the floor was made.
    against: str

    @property
    def ratio(self) -> float:
        """`value / floor`."""
        return self.value / self.floor

    @property
    def reached(self) -> bool:
        """Whether the ratio is within its target."""
        return self.ratio <= self.target


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The whole run; what several rows share is counted once."""

    seed: str
    profile: str
    #: What brings the same choices again.
    command: str
    faults: int
    operations: int
    #: Of the operations: those that append, awaited or accepted.
    appends: int
    unknown: int
    violations: int
    seconds: float
    #: Why the run ended before its end; empty if it did not.
    broken_off: str = ""


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least this share of them does not exceed."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def passed(rows: Iterable[Row], totals: Totals) -> bool:
    """Whether nothing was violated, and all was well after every fault that had its turn."""
    return not (totals.violations or totals.broken_off) and all(row.held for row in rows)


def write(
    rows: Sequence[Row], figures: Sequence[Figure], totals: Totals, folder: pathlib.Path
) -> None:
    """Write `chaos.json`, the rows, and `chaos-figures.json`, the totals and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = [
        msgspec.to_builtins(figure) | {"ratio": figure.ratio, "reached": figure.reached}
        for figure in figures
    ]
    more = {"totals": msgspec.to_builtins(totals), "figures": measured}
    for name, content in (
        ("chaos.json", [msgspec.to_builtins(row) for row in rows]),
        ("chaos-figures.json", more),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def show(
    rows: Sequence[Row],
    figures: Sequence[Figure],
    totals: Totals,
    console: rich.console.Console,
) -> None:
    """Print the tables, what went wrong, and the totals."""
    table = rich.table.Table()
    for name in ("fault", "runs", "operations", "unknown", "violations", "healthy p50 / p99"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for row in rows:
        table.add_row(
            f"{row.fault} [dim](losses reported: {row.losses_reported})"
            if row.losses_reported
            else row.fault,
            _runs(row),
            "[red]0" if row.runs and not row.operations else str(row.operations),
            str(row.unknown),
            f"[red]{row.violations}" if row.violations else "0",
            _healthy(row),
        )
    console.print(table)
    for row in rows:
        for why in row.errors:
            console.print(f"[red]{row.fault}:[/] {why}", highlight=False)
    if figures:
        console.print(_figures(figures))
    if totals.broken_off:
        console.print(f"[red]broken off:[/] {totals.broken_off}")
    console.print(
        f"{totals.faults} faults · {totals.operations} operations, {totals.appends} of them "
        f"appends, {totals.unknown} unknown · {totals.violations} violations · "
        f"{totals.seconds:.0f} s · durability fsync, but where a row says replicated",
        highlight=False,
    )


def _runs(row: Row) -> str:
    if row.fault == NO_FAULT:
        return ""
    return str(row.runs) if row.runs or row.errors else "not run"


def _healthy(row: Row) -> str:
    if row.unhealthy:
        return f"[red]not {row.unhealthy} times"
    if row.healthy_after_s is None:
        return "-"
    return f"{row.healthy_after_p50_s:.1f} / {row.healthy_after_s:.1f} s"


def _figures(figures: Sequence[Figure]) -> rich.table.Table:
    table = rich.table.Table("figure", "value", "floor", "ratio", "target", "", "n", "against")
    for figure in figures:
        table.add_row(
            figure.name,
            f"{figure.value:.3f} {figure.unit}",
            f"{figure.floor:.3f} {figure.unit}",
            f"{figure.ratio:.2f}",
            f"≤ {figure.target:g}",
            "[green]yes" if figure.reached else "[red]no",
            str(figure.samples),
            figure.against,
        )
    return table
