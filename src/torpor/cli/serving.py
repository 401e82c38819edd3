"""`torpor dev` and `torpor serve`: running a deployment."""

import pathlib
from typing import Annotated

import typer

from torpor.cli import options

PORT_MAX = 65_535


def dev(
    nodes: Annotated[int, typer.Option(min=1, help="Ray nodes on this machine.")] = 1,
    port: Annotated[
        int, typer.Option(min=0, max=PORT_MAX, help="The gateway's; 0 for any.")
    ] = 7420,
    agent: Annotated[
        list[str], typer.Option(metavar="MODULE:CLASS", help="Register an agent; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
    data_dir: Annotated[
        pathlib.Path, typer.Option(help="What outlives the command.")
    ] = options.LOCAL_FOLDER,
    dashboard: Annotated[bool, typer.Option(help="Run Ray's dashboard.")] = False,
) -> None:
    """Run everything on this machine; Ctrl-C ends it, data stays."""
    from torpor.dev import main

    main.run(
        main.DevOptions(
            folder=data_dir, nodes=nodes, port=port, agents=tuple(agent), dashboard=dashboard
        )
    )


def serve(
    config: options.ConfigFile = None,
    set_: options.Assignments = [],  # noqa: B006 - typer copies it
) -> None:
    """Run the control plane on an existing Ray cluster and Redis."""
    loaded = options.settings(config, set_)
    from torpor import serve as serving

    serving.run(loaded.deployment)
