"""`torpor dev`: a local deployment in the foreground, until Ctrl-C."""

import asyncio
import pathlib
import signal
import sys

import msgspec

from torpor import client, errors
from torpor.dev import local

#: Registered for everybody, so that a first session needs no code.
BUILT_IN_AGENTS = ("torpor.agents.notebook:Notebook",)


class DevOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The command's options."""

    folder: pathlib.Path
    nodes: int
    port: int
    agents: tuple[str, ...]
    dashboard: bool


def run(options: DevOptions) -> None:
    """Serve until SIGINT or SIGTERM; raises what keeps it from starting."""
    # Agents are imported by their path from the folder that the command is called in.
    sys.path.insert(0, str(pathlib.Path.cwd()))
    asyncio.run(_serve(options))


async def _serve(options: DevOptions) -> None:
    described = local.LocalOptions(
        folder=options.folder,
        nodes=options.nodes,
        port=options.port,
        dashboard=options.dashboard,
    )
    async with local.LocalDeployment(described, say=_say) as here:
        # Only now: starting Ray sets handlers of its own.
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await _register(here, options.agents)
        if here.cluster.dashboard:
            _say(f"Ray's dashboard is on http://{here.cluster.dashboard}")
        _say(
            f"ready on {', '.join(here.gateways)}; the API key is in {options.folder}/api-key\n"
            "  torpor sessions create notebook   # prints the session's id\n"
            '  torpor sessions send ID "1 + 1"\n'
            "  Ctrl-C ends it; everything stays in " + str(options.folder)
        )
        keeping = asyncio.create_task(here.control.keep())
        store_ended = asyncio.create_task(asyncio.to_thread(here.store_server.wait))
        store_ended.add_done_callback(lambda _: stop.set())
        await stop.wait()
        keeping.cancel()
        if store_ended.done():
            raise errors.StoreUnavailable(
                f"the embedded Valkey has ended; its log is {options.folder}/valkey/valkey.log. "
                "Start `torpor dev` again: what was acknowledged is on disk"
            )
        _say("evicting sessions, stopping")


async def _register(here: local.LocalDeployment, agents: tuple[str, ...]) -> None:
    async with client.connect(here.gateways[0], api_key=here.api_key) as connection:
        for import_path in (*BUILT_IN_AGENTS, *agents):
            registered = await connection.agents.register(import_path)
            _say(f"agent {registered.name} is version {registered.version} of {import_path}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 — this is the command's voice
