"""What a benchmark says: figures as ratios to a floor of the same run."""

import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec
import rich.console
import rich.table

Better = Literal["lower", "higher"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One row."""

    name: str
    unit: str
    value: float
    #: What it is held against, in the same unit and run; 0 where the value is only stated.
    floor: float
    #: value / floor, unless `against` says otherwise.
    ratio: float
    #: The bound of `ratio`; None where the figure is only stated.
    target: float | None
    better: Better
    durability: str
    #: How the floor was made.
    against: str

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        return self.ratio <= self.target if self.better == "lower" else self.ratio >= self.target


def figure(
    name: str,
    unit: str,
    value: float,
    *,
    floor: float = 0.0,
    ratio: float | None = None,
    target: float | None = None,
    better: Better = "lower",
    against: str = "",
) -> Figure:
    """Return a row at durability `fsync`."""
    if ratio is None:
        ratio = value / floor if floor else 0.0
    return Figure(
        name=name,
        unit=unit,
        value=value,
        floor=floor,
        ratio=ratio,
        target=target,
        better=better,
        durability="fsync",
        against=against,
    )


def p50(samples: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """Return the least sample that 99 of 100 do not exceed; of fewer than 100, the largest."""
    return sorted(samples)[math.ceil(0.99 * len(samples)) - 1]


def slope(values: Sequence[float]) -> float:
    """Return by how much evenly spaced values grow from one to the next, by least squares."""
    return statistics.linear_regression(range(len(values)), values).slope


def write(figures: Sequence[Figure], path: pathlib.Path) -> None:
    """Write the JSON list and print the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([msgspec.to_builtins(row) for row in figures], indent=1) + "\n")
    table = rich.table.Table("figure", "value", "floor", "ratio", "target", "", "against")
    for row in figures:
        mark = {True: "[green]yes", False: "[red]no", None: ""}[row.reached]
        sign = "≤" if row.better == "lower" else "≥"
        target = "" if row.target is None else f"{sign} {row.target:g}"
        ratio = f"{row.ratio:.3f}" if row.floor else ""
        floor = f"{row.floor:.3f} {row.unit}" if row.floor else ""
        value = f"{row.value:.3f} {row.unit}"
        table.add_row(row.name, value, floor, ratio, target, mark, row.against)
    console = rich.console.Console(width=150)
    console.print(table)
    console.print(f"durability fsync (append-only file, synced at every write) · {path}")
