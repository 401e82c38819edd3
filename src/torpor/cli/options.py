"""What the user asked for besides the command itself: whom to ask, as whom, and how to answer."""

import fcntl
import os
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from torpor import connecting, errors

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torpor import client, config

#: `torpor dev` leaves the addresses of its gateways, a line each, and the key here.
LOCAL_FOLDER = pathlib.Path(".torpor")
#: A person waits: about 2 s of tries, where a program would go on for 15.
ATTEMPTS_MAX = 6


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The global options."""

    address: str | None = None
    api_key: str | None = None
    tenant: str | None = None
    json: bool = False
    debug: bool = False


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Which gateway, and who calls."""

    address: str
    api_key: str | None
    tenant: str | None


def target(options: Options, environ: Mapping[str, str], folder: pathlib.Path) -> Target:
    """Return whom to call: options over environment over what `torpor dev` left in `folder`.

    The key of `torpor dev` goes to no other address than its own.
    """
    local = (_line(folder / "address") or "").split()
    address = options.address or environ.get("TORPOR_ADDRESS") or next(iter(local), None)
    api_key = options.api_key or environ.get("TORPOR_API_KEY")
    if not api_key and address and _numeric(address) in local:
        # Under a name somebody else might listen, too.
        address, api_key = _numeric(address), _line(folder / "api-key")
    return Target(
        address=address or connecting.ADDRESS,
        api_key=api_key or None,
        tenant=options.tenant or environ.get("TORPOR_TENANT") or None,
    )


def _numeric(address: str) -> str:
    """Return an address of this machine as `torpor dev` writes it."""
    return re.sub("^localhost:", "127.0.0.1:", address)


def connected(ctx: typer.Context) -> "AbstractContextManager[client.BlockingClient]":
    """Return a client for a command, to be used in a `with` block."""
    from torpor import client

    goal = target(ctx.obj, os.environ, LOCAL_FOLDER)
    return client.connect_sync(
        goal.address,
        api_key=goal.api_key,
        tenant=goal.tenant,
        policy=client.Policy(attempts_max=ATTEMPTS_MAX),
    )


def settings(file: pathlib.Path | None, assignments: list[str]) -> "config.Loaded":
    """Return the deployment's settings, for commands that work on the deployment itself.

    Raises:
        InvalidField: an assignment is not `key=value`, or what `config.load` raises.
    """
    from torpor import config

    flags = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise errors.InvalidField(f"--set {assignment!r} is not key=value", field="set")
        flags[key] = value
    return config.load(flags, file=file)


def settings_here(
    file: pathlib.Path | None, assignments: list[str], folder: pathlib.Path | None = None
) -> "config.Loaded":
    """Return the settings that are named, else those of the `torpor dev` that runs in `folder`.

    Without a folder it is the usual one, and where no `torpor dev` ever ran a file of settings that
    lies here serves: whoever used the one would not expect to hear of the other.

    Raises:
        FailedPrecondition: none runs there.
        InvalidField: as `settings`.
    """
    from torpor import config

    variables = (config.FILE_VARIABLE, f"{config.PREFIX}STORE_URL")
    named = file or assignments or any(os.environ.get(name) for name in variables)
    if named and folder is None:
        return settings(file, assignments)
    here = folder or LOCAL_FOLDER
    if _runs_in(here):
        return settings(here / config.FILE_NAME, [])
    if folder is not None or (here / "lock").exists():
        raise errors.FailedPrecondition(
            f"no `torpor dev` runs on {here}; start it, or name settings with --config"
        )
    return settings(file, assignments)


def _runs_in(folder: pathlib.Path) -> bool:
    """Whether a `torpor dev` runs on a folder, and so has written its settings there."""
    from torpor import config

    try:
        with (folder / "lock").open() as lock:
            # Who holds it wrote the settings; those of one that was killed name a port that may be
            # somebody else's by now.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (folder / config.FILE_NAME).exists()
    except FileNotFoundError:
        return False
    return False


def _line(path: pathlib.Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _remember_json(ctx: typer.Context, value: bool) -> bool:
    """Let errors know too that the command was asked for JSON."""
    root = ctx.find_root()
    if value and root.obj is not None:
        root.obj = msgspec.structs.replace(root.obj, json=True)
    return value


Json = Annotated[
    bool, typer.Option("--json", help="Write JSON, errors too.", callback=_remember_json)
]
ConfigFile = Annotated[
    pathlib.Path | None,
    typer.Option("--config", help="The settings file; TORPOR_CONFIG, then ./torpor.yaml."),
]
Assignments = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="A setting, over all other sources.")
]
SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="For the whole call.")
]
