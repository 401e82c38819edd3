"""`torpor sessions`."""

import collections
import itertools
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from torpor import errors, limits, messages
from torpor.cli import events, options, output

if TYPE_CHECKING:
    from torpor import client

app = typer.Typer(no_args_is_help=True, help="Make, speak to and steer sessions.")

#: No session has as many events, no tenant as many sessions, no agent as many versions.
COUNT_MAX = 1_000_000_000

Text = Annotated[str, typer.Argument(help="The message; - reads it from stdin.")]
Data = Annotated[str | None, typer.Option("--data", metavar="JSON", help="Structured content.")]
RequestId = Annotated[str | None, typer.Option("--request-id", help="The same id is handled once.")]
After = Annotated[
    int,
    typer.Option(
        "--after", min=0, max=COUNT_MAX, metavar="SEQ", help="Only events after this one."
    ),
]
Limit = Annotated[int, typer.Option(min=1, max=COUNT_MAX, help="At most this many.")]
Types = Annotated[
    list[str], typer.Option("--type", metavar="TYPE", help="Only these events; repeatable.")
]


@app.command()
def create(
    ctx: typer.Context,
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    session_id: Annotated[str, typer.Option("--id", help="Chosen by the server if absent.")] = "",
    agent_version: Annotated[int, typer.Option(min=0, max=COUNT_MAX, help="The newest for 0.")] = 0,
    request_id: RequestId = None,
    json: options.Json = False,
) -> None:
    """Make a session and print its id."""
    with options.connected(ctx) as client:
        session = client.sessions.create(
            agent, session_id=session_id, agent_version=agent_version, request_id=request_id
        )
        if output.as_json(ctx, json):
            output.document(session.get())
        else:
            output.line(session.id)


@app.command()
def ls(
    ctx: typer.Context,
    limit: Limit = 1000,
    json: options.Json = False,
) -> None:
    """List sessions in order of creation."""
    with options.connected(ctx) as client:
        found = list(
            itertools.islice(client.sessions.list(page_size=limits.PAGE_SESSIONS_MAX), limit)
        )
    if output.as_json(ctx, json):
        output.document(found)
        return
    output.table(
        ("SESSION", "AGENT", "STATUS", "RESIDENCY", "EVENTS", "UPDATED"),
        [
            (
                info.id,
                f"{info.agent}@{info.agent_version}",
                info.status,
                _residency(info),
                info.last_seq,
                output.minute(info.updated_ms),
            )
            for info in found
        ],
    )


@app.command()
def get(ctx: typer.Context, session_id: options.SessionId, json: options.Json = False) -> None:
    """Show a session as of its last commit."""
    with options.connected(ctx) as client:
        info = client.sessions.handle(session_id).get()
    if output.as_json(ctx, json):
        output.document(info)
        return
    shown = msgspec.structs.asdict(info)
    shown |= {
        "created_ms": output.when(info.created_ms),
        "updated_ms": output.when(info.updated_ms),
    }
    shown |= {f"usage.{name}": used for name, used in msgspec.structs.asdict(info.usage).items()}
    output.fields(
        {name.replace("ted_ms", "ted"): value for name, value in shown.items() if name != "usage"}
    )


@app.command()
def send(
    ctx: typer.Context,
    session_id: options.SessionId,
    text: Text = "",
    data: Data = None,
    request_id: RequestId = None,
    busy: Annotated[
        Literal["enqueue", "reject"], typer.Option(help="When a turn is under way.")
    ] = "enqueue",
    timeout: options.Timeout = None,
    json: options.Json = False,
) -> None:
    """Send a message and print the reply, once it is durable."""
    content = output.json_object(data, "--data")
    with options.connected(ctx) as client:
        reply = client.sessions.handle(session_id).send(
            _text(text, content),
            data=content,
            request_id=request_id,
            busy=busy,
            timeout_s=timeout,
        )
    if output.as_json(ctx, json):
        output.document(reply)
    else:
        output.line(reply.text)


@app.command()
def post(
    ctx: typer.Context,
    session_id: options.SessionId,
    text: Text = "",
    data: Data = None,
    request_id: RequestId = None,
    timeout: options.Timeout = None,
    json: options.Json = False,
) -> None:
    """Leave a message durably, without waiting for its turn; print its request id."""
    content = output.json_object(data, "--data")
    with options.connected(ctx) as client:
        accepted = client.sessions.handle(session_id).post(
            _text(text, content),
            data=content,
            request_id=request_id,
            timeout_s=timeout,
        )
    if output.as_json(ctx, json):
        output.document(accepted)
    else:
        output.line(accepted.request_id)


@app.command()
def watch(
    ctx: typer.Context,
    session_id: options.SessionId,
    after: After = 0,
    types: Types = [],  # noqa: B006 - typer copies it
    json: options.Json = False,
) -> None:
    """Print events as they happen, until Ctrl-C; replies in the making go to stderr."""
    as_json = output.as_json(ctx, json)
    with options.connected(ctx) as client:
        watched = client.sessions.handle(session_id).watch(after, types=types)
        unfinished = False
        try:
            for item in watched:
                unfinished = _show(item, as_json, unfinished=unfinished)
        except KeyboardInterrupt:
            watched.close()


@app.command()
def history(
    ctx: typer.Context,
    session_id: options.SessionId,
    after: After = 0,
    limit: Limit = 1000,
    types: Types = [],  # noqa: B006 - typer copies it
    json: options.Json = False,
) -> None:
    """Print committed events, oldest first."""
    as_json = output.as_json(ctx, json)
    with options.connected(ctx) as client:
        found = client.sessions.handle(session_id).events(after, types=types)
        for event in itertools.islice(found, limit):
            _show(event, as_json)


@app.command()
def explain(
    ctx: typer.Context,
    session_id: options.SessionId,
    last: Annotated[int, typer.Option(min=1, max=1000, help="So many wakes.")] = 1,
    json: options.Json = False,
) -> None:
    """Show where the time of the last wakes went, in milliseconds."""
    with options.connected(ctx) as client:
        found = client.sessions.handle(session_id).events(types=[messages.SESSION_WOKEN])
        wakes = [event.data for event in collections.deque(found, maxlen=last)]
    if output.as_json(ctx, json):
        output.document(wakes)
        return
    laps = list(dict.fromkeys(lap for wake in wakes for lap in wake.get("took_ms", {})))
    rows = []
    for wake in wakes:
        took_ms = wake.get("took_ms", {})
        spent = [f"{took_ms[lap]:.1f}" if lap in took_ms else "" for lap in laps]
        rows.append((str(wake["epoch"]), wake["node"], *spent, f"{sum(took_ms.values()):.1f}"))
    titles = (f"{lap.upper().replace('_', ' ')} MS" for lap in laps)
    output.table(("EPOCH", "NODE", *titles, "SUM MS"), rows)


@app.command()
def logs(ctx: typer.Context, session_id: options.SessionId) -> None:
    """Print what the session's processes printed, as it is."""
    with options.connected(ctx) as client:
        content = client.sessions.handle(session_id).logs()
    sys.stdout.buffer.write(content)


@app.command()
def evict(ctx: typer.Context, session_id: options.SessionId, json: options.Json = False) -> None:
    """Put a session to sleep."""
    with options.connected(ctx) as client:
        info = client.sessions.handle(session_id).evict()
    _steered(ctx, info, json)


@app.command()
def pause(ctx: typer.Context, session_id: options.SessionId, json: options.Json = False) -> None:
    """Let a session handle no message until it is resumed."""
    with options.connected(ctx) as client:
        info = client.sessions.handle(session_id).pause()
    _steered(ctx, info, json)


@app.command()
def resume(ctx: typer.Context, session_id: options.SessionId, json: options.Json = False) -> None:
    """Let a paused session handle messages again."""
    with options.connected(ctx) as client:
        info = client.sessions.handle(session_id).resume()
    _steered(ctx, info, json)


@app.command()
def delete(ctx: typer.Context, session_id: options.SessionId) -> None:
    """Delete a session for good."""
    with options.connected(ctx) as client:
        client.sessions.handle(session_id).delete()
    output.note(f"{session_id} is deleted")


def _steered(ctx: typer.Context, info: "client.SessionInfo", json: bool) -> None:
    if output.as_json(ctx, json):
        output.document(info)
    else:
        output.line(f"{info.id} {info.status} {_residency(info)}")


def _residency(info: "client.SessionInfo") -> str:
    return f"on {info.node_name or info.node[:12]}" if info.resident else "evicted"


def _text(text: str, data: dict[str, Any] | None) -> str:
    """Return the words of a message, from stdin for `-`.

    Raises:
        InvalidField: there are none, and no data.
    """
    said = sys.stdin.read() if text == "-" else text
    if not said and not data:
        raise errors.InvalidField("the message is empty: give a text or --data", field="text")
    return said


def _show(
    item: "messages.Event | client.Delta", as_json: bool, *, unfinished: bool = False
) -> bool:
    """Print an item; `unfinished` is whether the line before it is, returned whether its own is."""
    from torpor import client

    if as_json:
        output.json_line(item)
        return False
    if isinstance(item, client.Delta):
        typer.echo(item.text, nl=False, err=True)
        return True
    if unfinished:
        output.note("")
    head = f"{item.seq:>6}  {item.type:<18}  "
    output.line(head + output.indented(events.body(item), len(head)))
    return False
