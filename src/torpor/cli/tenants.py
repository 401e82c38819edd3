"""`torpor tenants`."""

from typing import Annotated

import typer

from torpor import clock, ids
from torpor.cli import catalog, options, output

app = typer.Typer(no_args_is_help=True, help="Tenants; works on the store that torpor.yaml names.")


@app.command()
def create(
    name: Annotated[str, typer.Argument()],
    config: options.ConfigFile = None,
    set_: options.Assignments = [],  # noqa: B006 - typer copies it
) -> None:
    """Make a tenant known; succeeds if it is."""
    ids.check_name("tenant", name)
    at_ms = clock.SystemClock().now_ms()
    catalog.with_catalog(config, set_, lambda opened: opened.create_tenant(name, at_ms=at_ms))
    where = f" --config {config}" if config else ""
    output.note(f"tenant {name} is known; make it a key with `torpor keys create {name}{where}`")


@app.command()
def ls(
    ctx: typer.Context,
    config: options.ConfigFile = None,
    set_: options.Assignments = [],  # noqa: B006 - typer copies it
    json: options.Json = False,
) -> None:
    """List tenants by name."""
    names = catalog.with_catalog(config, set_, lambda opened: opened.tenants())
    if output.as_json(ctx, json):
        output.document(names)
    else:
        for name in names:
            output.line(name)
