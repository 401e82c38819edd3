"""`torpor config`."""

import re
from typing import Annotated

import typer

from torpor.cli import options, output

app = typer.Typer(no_args_is_help=True, help="Settings.")

_PASSWORD = re.compile(r"(?<=://)([^:@/]*):[^@/]*(?=@)")


@app.command()
def show(
    ctx: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="And where each comes from.")] = False,
    config: options.ConfigFile = None,
    set_: options.Assignments = [],  # noqa: B006 - typer copies it
    json: options.Json = False,
) -> None:
    """Print the settings in force, without the store's password."""
    loaded = options.settings(config, set_)
    shown = {
        key: (_PASSWORD.sub(r"\1:***", str(found.value)), f"{found.source} {found.where}".strip())
        for key, found in loaded.origins.items()
    }
    if output.as_json(ctx, json):
        output.document(
            {key: {"value": v, "origin": o} if origin else v for key, (v, o) in shown.items()}
        )
    elif origin:
        output.table(("KEY", "VALUE", "ORIGIN"), [(key, v, o) for key, (v, o) in shown.items()])
    else:
        output.fields({key: value for key, (value, _) in shown.items()})
