"""`torpor`: the root of the commands."""

from importlib import metadata
from typing import Annotated

import typer

from torpor.cli import (
    agents,
    config,
    doctor,
    failures,
    files,
    fsck,
    keys,
    node,
    nodes,
    options,
    output,
    serving,
    sessions,
    tenants,
)

app = typer.Typer(
    cls=failures.Group,
    help="Agent sessions that sleep when idle and wake exactly where they were.",
    epilog=failures.EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("dev")(serving.dev)
app.command("serve")(serving.serve)
app.command("deploy")(agents.deploy)
app.command("doctor")(doctor.doctor)
app.command("fsck")(fsck.fsck)
app.add_typer(agents.app, name="agents")
app.add_typer(sessions.app, name="sessions")
app.add_typer(files.app, name="files")
app.add_typer(node.app, name="node")
app.add_typer(nodes.app, name="nodes")
app.add_typer(tenants.app, name="tenants")
app.add_typer(keys.app, name="keys")
app.add_typer(config.app, name="config")


def _tell_version(value: bool) -> None:
    if value:
        output.line(metadata.version("torpor"))
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    address: Annotated[
        str | None, typer.Option(help="A gateway, host:port; TORPOR_ADDRESS.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Who calls; TORPOR_API_KEY.")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="For operators: whose sessions; TORPOR_TENANT.")
    ] = None,
    json: options.Json = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where errors were raised.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_tell_version),
    ] = False,
) -> None:
    """Options of all commands."""
    ctx.obj = options.Options(
        address=address, api_key=api_key, tenant=tenant, json=json, debug=debug
    )


@app.command()
def version(ctx: typer.Context, json: options.Json = False) -> None:
    """Print the version."""
    number = metadata.version("torpor")
    if output.as_json(ctx, json):
        output.document({"version": number})
    else:
        output.line(number)


def main() -> None:
    """Run the command line."""
    app()
