"""`torpor deploy` and `torpor agents`."""

from typing import Annotated

import typer

from torpor.cli import options, output

app = typer.Typer(no_args_is_help=True, help="Agent definitions.")


def deploy(
    ctx: typer.Context,
    import_path: Annotated[str, typer.Argument(metavar="MODULE:CLASS")],
    name: Annotated[str, typer.Option(help="The class's name in lower case by default.")] = "",
    json: options.Json = False,
) -> None:
    """Register an agent that every node can import; the same code makes no new version."""
    with options.connected(ctx) as client:
        agent = client.agents.register(import_path, name=name)
    if output.as_json(ctx, json):
        output.document(agent)
    else:
        output.line(f"{agent.name} {agent.version}")


@app.command()
def ls(ctx: typer.Context, json: options.Json = False) -> None:
    """List the newest version of each agent."""
    with options.connected(ctx) as client:
        found = list(client.agents.list())
    if output.as_json(ctx, json):
        output.document(found)
        return
    output.table(
        ("NAME", "VERSION", "IMPORT PATH", "IDLE", "CREATED"),
        [
            (
                agent.name,
                agent.version,
                agent.import_path,
                f"{agent.idle_timeout_s:g} s",
                output.minute(agent.created_ms),
            )
            for agent in found
        ],
    )
