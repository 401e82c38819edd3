"""Errors as the command line tells them: one line, a remedy, and an exit code."""

import re
import traceback
from collections.abc import Iterator
from typing import Any

import msgspec
import typer
from typer import core

from torpor import errors

OK, ERROR, USAGE, NOT_FOUND, UNAVAILABLE, REFUSED, NOT_ALLOWED, AGENT_FAILED = range(8)

_CODES: dict[type[errors.TorporError], int] = {
    errors.InvalidArgument: USAGE,
    errors.NotFound: NOT_FOUND,
    errors.Unavailable: UNAVAILABLE,
    errors.ResourceExhausted: UNAVAILABLE,
    errors.Aborted: UNAVAILABLE,
    errors.DeadlineExceeded: UNAVAILABLE,
    errors.FailedPrecondition: REFUSED,
    errors.AlreadyExists: REFUSED,
    errors.Unauthenticated: NOT_ALLOWED,
    errors.PermissionDenied: NOT_ALLOWED,
    errors.TurnFailed: AGENT_FAILED,
}

#: For `torpor --help`.
EPILOG = (
    "Exit codes: 0 done; 1 error; 2 wrong usage or value; 3 not found; 4 unavailable, try again; "
    "5 refused in the present state; 6 not allowed; 7 the agent failed; 130 interrupted. "
    "Environment: TORPOR_ADDRESS, TORPOR_API_KEY, TORPOR_TENANT, TORPOR_CONFIG."
)

#: What to do where the message does not say it; filled in with the error's ids.
_REMEDIES: dict[type[errors.TorporError], str] = {
    errors.Unavailable: "start one with `torpor dev`, or name another with --address",
    errors.SessionNotFound: "see `torpor sessions ls`; another tenant's need --tenant",
    errors.SessionExists: "see it with `torpor sessions get {session}`, or choose another id",
    errors.SessionPaused: "see `torpor sessions resume {session}`",
    errors.NotEvictable: "pause it first: `torpor sessions pause {session}`",
    errors.NodeNotFound: "see `torpor nodes ls`",
    errors.TenantNotFound: "see `torpor tenants ls` and `torpor tenants create`",
    errors.ApiKeyInvalid: "make one with `torpor keys create TENANT`",
    errors.OutcomeUnknown: "ask again with --request-id {request_id}",
    errors.DeadlineExceeded: "ask again with --request-id {request_id}, or a longer --timeout",
    **dict.fromkeys(
        (errors.TurnFailed, *errors.TurnFailed.__subclasses__()),
        "the history has the rest: `torpor sessions history {session}`",
    ),
}

_MODULE_REMEDY = (
    "start `torpor dev` in the folder of the module, or install it on the nodes: they import it "
    "themselves"
)
_LOGS_REMEDY = "its processes may have printed why: `torpor sessions logs {session}`"
#: What gRPC says in brackets when it reaches nobody, of which the last part alone is for people.
_UNREACHABLE = re.compile(r" \((?:.*: )?(.*?)\]?\); is it running, and is the address right\?")


def exit_code(error: Exception) -> int:
    """Return the code of the nearest class that has one."""
    return next((_CODES[cls] for cls in type(error).__mro__ if cls in _CODES), ERROR)


def remedy(error: errors.TorporError) -> str:
    """Return what the user can do; empty if the message says it."""
    if isinstance(error, errors.AgentImportFailed):
        return _MODULE_REMEDY if "ModuleNotFoundError" in error.message else ""
    told = _REMEDIES.get(type(error), "")
    if isinstance(error, errors.TurnFailed) and error.ids.get("seq", "0") == "0":
        # Nothing of it was committed, so the history has no more to say.
        told = _LOGS_REMEDY if isinstance(error, errors.MessageGivenUp) else ""
    try:
        return told.format(**error.ids)
    except KeyError:
        return ""


def message(error: errors.TorporError) -> str:
    """Return an error's message as whoever types commands needs it."""
    if isinstance(error, errors.ApiKeyMissing):
        return (
            "no API key: use --api-key or TORPOR_API_KEY, or run in the folder of `torpor dev`, "
            "where its .torpor is"
        )
    if isinstance(error, errors.AgentImportFailed):
        return "\n".join(
            line for line in error.message.splitlines() if "<frozen importlib" not in line
        )
    if type(error) is not errors.Unavailable:
        return error.message
    return _UNREACHABLE.sub(
        lambda found: f": {found[1][:1].lower()}{found[1][1:]}; is `torpor dev` running?",
        error.message,
    )


class Failure(msgspec.Struct, frozen=True):
    """An error under `--json`, on stderr."""

    reason: str
    message: str
    remedy: str
    retryable: bool
    ids: dict[str, str]


class Group(core.TyperGroup):
    """The root of the commands: tells errors of ours instead of showing where they were raised."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the global options, after a word to all help: flags take no value."""
        for command in _with_subcommands(self):
            for param in command.get_params(ctx):
                if getattr(param, "is_flag", False):
                    param.metavar = ""
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; errors end it with their exit code."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read our output has seen enough: typer ends the command without a word.
            raise
        except (errors.TorporError, OSError) as error:
            if ctx.obj.debug:
                traceback.print_exception(error)
            _tell(_failure(error), json=ctx.obj.json)
            raise typer.Exit(exit_code(error)) from None
        except Exception as error:
            self._say_where_it_goes(error)
            raise

    def _say_where_it_goes(self, error: Any) -> None:
        """Complete the message if a global option was given to a command."""
        name = getattr(error, "option_name", "")
        if name in {option for param in self.params for option in param.opts}:
            error.message += f"; it goes before the command: torpor {name} … COMMAND"


def _with_subcommands(command: Any) -> Iterator[Any]:
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from _with_subcommands(below)


def _failure(error: errors.TorporError | OSError) -> Failure:
    if isinstance(error, OSError):
        return Failure("OS_ERROR", str(error), "", retryable=False, ids={})
    return Failure(error.reason, message(error), remedy(error), error.retryable, error.ids)


def _tell(failure: Failure, *, json: bool) -> None:
    if json:
        typer.echo(msgspec.json.encode({"error": failure}), err=True)
        return
    prefix = typer.style("error:", fg="red", bold=True)
    told = f"{failure.message} {failure.remedy}"
    unsaid = [
        f"{name}={value}"
        for name, value in sorted(failure.ids.items())
        if name != "field" and value not in told
    ]
    label = " ".join((failure.reason, *unsaid))
    summary, *details = failure.message.splitlines() or [""]
    typer.echo(f"{prefix} {summary} [{label}]", err=True)
    for line in details:
        typer.echo(line, err=True)
    if failure.remedy:
        typer.echo(f"  {failure.remedy}", err=True)
