"""`torpor nodes`, for operators."""

from typing import TYPE_CHECKING, Annotated

import typer

from torpor.cli import options, output

if TYPE_CHECKING:
    from torpor import client

app = typer.Typer(no_args_is_help=True, help="Nodes; needs an operator's API key.")


@app.command()
def ls(ctx: typer.Context, json: options.Json = False) -> None:
    """List nodes with their load."""
    with options.connected(ctx) as client:
        found = client.admin.nodes()
    if output.as_json(ctx, json):
        output.document(found)
        return
    output.table(
        ("NAME", "ID", "STATE", "SESSIONS", "STOCK", "CPU", "MEMORY", "GATEWAY"),
        [
            (
                node.name,
                node.id[:12],
                _state(node),
                f"{node.sessions}/{node.sessions_max}",
                str(node.slots_in_stock),
                f"{node.cpu:.0%}",
                f"{node.memory:.0%}",
                node.gateway,
            )
            for node in found
        ],
    )


@app.command()
def drain(
    ctx: typer.Context,
    node: Annotated[str, typer.Argument(help="Its id or name.")],
    timeout: options.Timeout = None,
    json: options.Json = False,
) -> None:
    """Place no more sessions on a node, evict those on it, and wait until it is empty."""
    with options.connected(ctx) as client:
        drained = client.admin.drain(node, timeout_s=timeout)
    if output.as_json(ctx, json):
        output.document(drained)
    else:
        output.line(f"{drained.name} {_state(drained)} {drained.sessions} sessions")


def _state(node: "client.NodeInfo") -> str:
    if not node.alive:
        return "dead"
    return "draining" if node.draining else "alive"
