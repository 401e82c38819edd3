"""`torpor node`: this machine as a node of a Ray cluster."""

import typer

app = typer.Typer(no_args_is_help=True, help="This machine as a node of a Ray cluster.")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def start(ctx: typer.Context) -> None:
    """Start Ray here as `ray start` does, with the same options, and workers that fork.

    Sessions then wake in a fraction of the time that a new Python process takes. On nodes that
    were started with `ray start` sessions work as well, but every wake imports everything anew.

        torpor node start --head --port=6379 --num-cpus=0

        torpor node start --address=10.0.0.10:6379
    """
    from torpor.actors import ray_compat

    ray_compat.start_node(ctx.args)
