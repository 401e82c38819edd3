"""How commands answer: data on stdout, everything else on stderr."""

import datetime as dt
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import typer

from torpor import errors


def as_json(ctx: typer.Context, json: bool) -> bool:
    """Whether to write JSON: the command's own option, or the global one."""
    return json or bool(ctx.find_root().obj.json)


def line(text: str) -> None:
    """Write one line of data."""
    typer.echo(text)


def document(value: object) -> None:
    """Write a value as one indented JSON document."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2))


def json_line(value: object) -> None:
    """Write a value as one line of JSON, at once: for streams."""
    typer.echo(msgspec.json.encode(value))
    sys.stdout.flush()


def note(text: str) -> None:
    """Say something about the command, beside its data."""
    typer.echo(text, err=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write rows: aligned and coloured on a terminal, separated by tabs for other programs.

    The first column names the row, so it is never cut or folded.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in (columns, *cells):
            typer.echo("\t".join(row))
        return
    from rich import box, console, text
    from rich import table as tables

    drawn = tables.Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    name_columns = max(len(row[0]) for row in (columns, *cells))
    drawn.add_column(columns[0], no_wrap=True, min_width=name_columns)
    for column in columns[1:]:
        drawn.add_column(column, overflow="fold")
    for row in cells:
        drawn.add_row(*(text.Text(cell) for cell in row))
    console.Console().print(drawn)


def fields(values: Mapping[str, object]) -> None:
    """Write names and values, one a line."""
    width = max(len(name) for name in values) + 1
    for name, value in values.items():
        typer.echo(f"{name + ':':<{width}} {value}")


def when(at_ms: int) -> str:
    """Return a time in the reader's zone, to the second."""
    return _local(at_ms).isoformat(sep=" ", timespec="seconds")


def minute(at_ms: int) -> str:
    """Return a time in the reader's zone as tables show it, without seconds and zone."""
    return f"{_local(at_ms):%Y-%m-%d %H:%M}"


def _local(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms / 1000, tz=dt.UTC).astimezone()


def indented(text: str, columns: int) -> str:
    """Return text whose further lines begin `columns` to the right."""
    return text.replace("\n", "\n" + " " * columns)


def json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """Return the JSON object that an option holds.

    Raises:
        InvalidField: it is something else.
    """
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise errors.InvalidField(f"{option} is not a JSON object: {error}", field=option) from None
