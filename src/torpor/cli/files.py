"""`torpor files`: a session's workspace, as of its last commit."""

import pathlib
import sys
from typing import Annotated

import typer

from torpor import errors
from torpor.cli import options, output

app = typer.Typer(no_args_is_help=True, help="Files of a session's workspace.")

Remote = Annotated[str, typer.Argument(metavar="PATH", help="In the workspace.")]
_KINDS = {"regular": "-", "directory": "d", "symlink": "l"}
#: Stands for stdin or stdout.
_DASH = "-"


@app.command()
def ls(
    ctx: typer.Context,
    session_id: options.SessionId,
    path: Annotated[str, typer.Argument(help="A folder; all by default.")] = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Folders too.")] = False,
    json: options.Json = False,
) -> None:
    """List files."""
    with options.connected(ctx) as client:
        found = list(client.sessions.handle(session_id).files.list(path, recursive=recursive))
    if output.as_json(ctx, json):
        output.document(found)
        return
    output.table(
        ("MODE", "BYTES", "PATH"),
        [
            (
                f"{_KINDS.get(file.kind, '?')}{file.mode:04o}",
                file.size_bytes,
                f"{file.path} -> {file.target}" if file.target else file.path,
            )
            for file in found
        ],
    )


@app.command()
def get(
    ctx: typer.Context,
    session_id: options.SessionId,
    path: Remote,
    local: Annotated[
        str, typer.Argument(help="Where to; the same name here by default, - for stdout.")
    ] = "",
) -> None:
    """Copy a file out of the workspace."""
    with options.connected(ctx) as client:
        files = client.sessions.handle(session_id).files
        if local == _DASH:
            sys.stdout.buffer.write(files.read(path))
            return
        place = pathlib.Path(local or pathlib.PurePosixPath(path).name)
        if place.is_dir():
            place /= pathlib.PurePosixPath(path).name
        if not place.parent.is_dir():
            raise errors.InvalidField(f"there is no local folder {place.parent}", field="local")
        size_bytes = files.read_to(path, place)
    output.note(f"{place}: {size_bytes} bytes")


@app.command()
def put(
    ctx: typer.Context,
    session_id: options.SessionId,
    local: Annotated[str, typer.Argument(help="The local file; - for stdin.")],
    path: Annotated[str, typer.Argument(help="In the workspace; the same name by default.")] = "",
    mode: Annotated[
        str, typer.Option(metavar="OCTAL", help="Permission bits; 0644 by default.")
    ] = "0",
    json: options.Json = False,
) -> None:
    """Copy a file into the workspace, as a commit of its own."""
    if local == _DASH and not path:
        raise errors.InvalidField("what comes from stdin needs a PATH", field="path")
    try:
        bits = int(mode, 8)
    except ValueError:
        raise errors.InvalidField(f"--mode {mode!r} is not octal", field="mode") from None
    content = sys.stdin.buffer.read() if local == _DASH else pathlib.Path(local)
    if isinstance(content, pathlib.Path) and not content.is_file():
        raise errors.InvalidField(f"there is no local file {local}", field="local")
    with options.connected(ctx) as client:
        written = client.sessions.handle(session_id).files.write(
            path or pathlib.Path(local).name, content, mode=bits
        )
    if output.as_json(ctx, json):
        output.document(written)
    else:
        output.line(f"{written.file.path} {written.file.size_bytes} version {written.version}")
