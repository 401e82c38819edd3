"""The command line, against a gateway of scripted answers."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer import testing

from torpor import errors
from torpor.cli import failures, main, options
from torpor.client import loop
from torpor.testing.scripted_gateway import ScriptedGateway
from torpor.v1 import (
    admin_pb2,
    agents_pb2,
    common_pb2,
    sessions_pb2,
    workspaces_pb2,
)

SESSION = sessions_pb2.Session(
    id="s", agent="notebook", agent_version=1, status=sessions_pb2.SESSION_STATUS_IDLE, version=3
)
EVENTS = [
    common_pb2.Event(seq=1, type="user.message", data_json='{"text": "6 * 7"}'),
    common_pb2.Event(seq=2, type="agent.message", data_json='{"text": "42"}'),
]
ENDED = sessions_pb2.STOP_REASON_END_TURN


@pytest.fixture
def gateway(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedGateway]:
    """A gateway on a thread of its own, to which the environment points."""
    for name in list(os.environ):
        if name.startswith("TORPOR_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with loop.background_loop() as background:
        running = background.run(_start())
        monkeypatch.setenv("TORPOR_ADDRESS", running.address)
        yield running
        background.run(running.stop())


async def _start() -> ScriptedGateway:
    return await ScriptedGateway().start()


def torpor(*arguments: str, stdin: str | None = None) -> testing.Result:
    """Run a command in this process."""
    return testing.CliRunner().invoke(main.app, arguments, input=stdin)


def test_send_prints_the_reply_alone(gateway: ScriptedGateway) -> None:
    """Data goes to stdout, nothing to stderr; `-` reads stdin; `--json` gives all of it."""
    gateway.script["SendMessage"] = [
        sessions_pb2.SendMessageResponse(text="42", seq=2, version=1, stop_reason=ENDED)
    ]
    empty = torpor("sessions", "send", "s", "")
    assert (empty.exit_code, gateway.of("SendMessage")) == (failures.USAGE, [])
    result = torpor("sessions", "send", "s", "-", "--busy", "reject", stdin="6 * 7")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "42\n", "")
    (request,) = gateway.of("SendMessage")
    assert (request.text, request.busy) == ("6 * 7", sessions_pb2.BUSY_POLICY_REJECT)
    expected = {"text": "42", "data": {}, "seq": 2, "version": 1, "repeated": False}
    for arguments in (["--json", "sessions", "send"], ["sessions", "send", "--json"]):
        assert json.loads(torpor(*arguments, "s", "x").stdout) == expected


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.SessionNotFound(), failures.NOT_FOUND, "torpor sessions ls"),
        (errors.SessionPaused(session="s"), failures.REFUSED, "torpor sessions resume s"),
        (errors.ApiKeyInvalid(), failures.NOT_ALLOWED, "torpor keys create"),
        (errors.InvalidField("text is empty"), failures.USAGE, "text is empty"),
        (errors.Internal(), failures.ERROR, "log"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    gateway: ScriptedGateway, error: errors.TorporError, code: int, said: str
) -> None:
    """An error tells message, reason and what to do, on stderr, without a traceback."""
    gateway.script["SendMessage"] = [error]
    result = torpor("sessions", "send", "s", "x")
    assert (result.exit_code, result.stdout) == (code, "")
    first, *rest = result.stderr.splitlines()
    assert first == f"error: {error.message} [{error.reason}]"
    assert said in result.stderr
    assert len(rest) <= 1
    assert "Traceback" in torpor("--debug", "sessions", "send", "s", "x").stderr
    told = json.loads(torpor("sessions", "send", "s", "x", "--json").stderr)["error"]
    assert (told["reason"], told["ids"]) == (error.reason, error.ids)


def test_a_failed_turn_has_its_own_exit_code(gateway: ScriptedGateway) -> None:
    """A script can tell the agent's failure from torpor's."""
    gateway.script["SendMessage"] = [
        sessions_pb2.SendMessageResponse(
            stop_reason=sessions_pb2.STOP_REASON_ERROR,
            error_reason="TURN_FAILED",
            error_message="NameError: x\nline 1",
            seq=7,
            version=3,
        )
    ]
    result = torpor("sessions", "send", "s", "x")
    assert result.exit_code == failures.AGENT_FAILED
    assert result.stderr.splitlines() == [
        "error: NameError: x [TURN_FAILED seq=7 version=3]",
        "line 1",
        "  the history has the rest: `torpor sessions history s`",
    ]


def test_an_error_names_what_it_is_about(gateway: ScriptedGateway) -> None:
    """Ids that the message leaves out are told behind the reason."""
    gateway.script["GetSession"] = [errors.SessionNotFound(session="gone", tenant="acme")]
    first = torpor("sessions", "get", "gone").stderr.splitlines()[0]
    assert first.endswith("[SESSION_NOT_FOUND session=gone tenant=acme]")


def test_an_unknown_outcome_says_how_to_learn_it(gateway: ScriptedGateway) -> None:
    """The id to repeat the request with is told."""
    gateway.script["SendMessage"] = [errors.OutcomeUnknown()]
    result = torpor("sessions", "send", "s", "x", "--timeout", "0.05", "--request-id", "r-1")
    assert result.exit_code == failures.UNAVAILABLE
    assert "--request-id r-1" in result.stderr


def test_sessions(gateway: ScriptedGateway) -> None:
    """Sessions are made, listed, shown, steered and deleted."""
    gateway.script["CreateSession"] = [sessions_pb2.CreateSessionResponse(session=SESSION)]
    gateway.script["GetSession"] = [sessions_pb2.GetSessionResponse(session=SESSION)]
    gateway.script["ListSessions"] = [sessions_pb2.ListSessionsResponse(sessions=[SESSION])]
    gateway.script["EvictSession"] = [sessions_pb2.EvictSessionResponse(session=SESSION)]
    gateway.script["PauseSession"] = [sessions_pb2.PauseSessionResponse(session=SESSION)]
    gateway.script["ResumeSession"] = [sessions_pb2.ResumeSessionResponse(session=SESSION)]
    gateway.script["DeleteSession"] = [sessions_pb2.DeleteSessionResponse()]
    assert torpor("sessions", "create", "notebook", "--id", "s").stdout == "s\n"
    assert gateway.of("CreateSession")[0].session_id == "s"
    header, row = torpor("sessions", "ls").stdout.splitlines()
    assert header.startswith("SESSION\tAGENT\t")
    assert row.startswith("s\tnotebook@1\tidle\tevicted\t0\t19")
    shown = [line.split() for line in torpor("sessions", "get", "s").stdout.splitlines()]
    assert ["version:", "3"] in shown
    assert ["usage.turns:", "0"] in shown
    assert json.loads(torpor("sessions", "get", "s", "--json").stdout)["usage"]["turns"] == 0
    for verb in ("evict", "pause", "resume"):
        assert torpor("sessions", verb, "s").stdout == "s idle evicted\n", verb
    deleted = torpor("sessions", "delete", "s")
    assert (deleted.exit_code, deleted.stdout) == (0, "")


def test_events(gateway: ScriptedGateway) -> None:
    """History and watch print one event a line, as text or as JSON; deltas stay off stdout."""
    gateway.script["ListEvents"] = [sessions_pb2.ListEventsResponse(events=EVENTS)]
    gateway.script["WatchEvents"] = [
        [
            sessions_pb2.WatchEventsResponse(event=EVENTS[0]),
            sessions_pb2.WatchEventsResponse(delta="4"),
            sessions_pb2.WatchEventsResponse(event=EVENTS[1]),
            errors.SessionDeleted(),
        ]
    ]
    gateway.script["ReadLog"] = [sessions_pb2.ReadLogResponse(data=b"\xffprinted")]
    first, second = torpor("sessions", "history", "s", "--limit", "5").stdout.splitlines()
    assert first.split() == ["1", "user.message", "6", "*", "7"]
    assert second.split() == ["2", "agent.message", "42"]
    watched = torpor("sessions", "watch", "s", "--after", "0")
    assert watched.exit_code == failures.NOT_FOUND
    assert watched.stdout.split()[:5] == ["1", "user.message", "6", "*", "7"]
    assert watched.stderr.startswith("4\nerror:"), "the event begins a line of its own"
    lines = torpor("sessions", "watch", "s", "--json").stdout.splitlines()
    assert [json.loads(line).get("seq", "delta") for line in lines] == [1, "delta", 2]
    assert torpor("sessions", "logs", "s").stdout_bytes == b"\xffprinted"


def test_where_the_time_of_wakes_went(gateway: ScriptedGateway) -> None:
    """One row a wake, the newest last, with the laps that were taken."""
    laps = {"placement": 1.5, "slot": 0.5, "first_turn": 3.0}
    wakes = [
        common_pb2.Event(
            seq=seq,
            type="session.woken",
            data_json=json.dumps({"node": "node-1", "epoch": seq, "took_ms": laps}),
        )
        for seq in (1, 2, 3)
    ]
    gateway.script["ListEvents"] = [sessions_pb2.ListEventsResponse(events=wakes)]
    rows = torpor("sessions", "explain", "s", "--last", "2").stdout.splitlines()
    titles = ["EPOCH", "NODE", "PLACEMENT MS", "SLOT MS", "FIRST TURN MS", "SUM MS"]
    assert rows[0].split("\t") == titles
    assert [row.split("\t")[0] for row in rows[1:]] == ["2", "3"]
    assert rows[1].split("\t")[1:] == ["node-1", "1.5", "0.5", "3.0", "5.0"]
    (wake,) = json.loads(torpor("sessions", "explain", "s", "--json").stdout)
    assert wake["took_ms"] == laps


def test_files(gateway: ScriptedGateway, tmp_path: pathlib.Path) -> None:
    """Files are listed, fetched and put."""
    file = workspaces_pb2.File(
        path="d/a.txt", kind=workspaces_pb2.FILE_KIND_REGULAR, size_bytes=2, mode=0o644
    )
    gateway.script["ListFiles"] = [workspaces_pb2.ListFilesResponse(files=[file])]
    gateway.script["ReadFile"] = [
        [
            workspaces_pb2.ReadFileResponse(file=file),
            workspaces_pb2.ReadFileResponse(data=b"h\xff"),
        ]
    ]
    gateway.script["WriteFile"] = [workspaces_pb2.WriteFileResponse(file=file, version=4)]
    assert torpor("files", "ls", "s", "-r").stdout.splitlines()[1] == "-0644\t2\td/a.txt"
    assert torpor("files", "get", "s", "d/a.txt", "-").stdout_bytes == b"h\xff"
    assert torpor("files", "get", "s", "d/a.txt").exit_code == 0
    assert (tmp_path / "a.txt").read_bytes() == b"h\xff"
    put = torpor("files", "put", "s", "a.txt", "d/a.txt", "--mode", "600")
    assert put.stdout == "d/a.txt 2 version 4\n"
    header, content = gateway.of("WriteFile")[0]
    assert (header.header.path, header.header.mode) == ("d/a.txt", 0o600)
    assert content.data == b"h\xff"
    assert torpor("files", "put", "s", "none.txt").exit_code == failures.USAGE
    nowhere = torpor("files", "get", "s", "d/a.txt", "no/where")
    assert nowhere.exit_code == failures.USAGE
    assert "there is no local folder no" in nowhere.stderr


def test_agents_and_nodes(gateway: ScriptedGateway) -> None:
    """Agents are deployed and listed, nodes listed and drained."""
    agent = agents_pb2.Agent(name="notebook", version=2, import_path="m:C")
    node = admin_pb2.Node(name="n1", alive=True, draining=True, sessions=1, sessions_max=9)
    gateway.script["RegisterAgent"] = [agents_pb2.RegisterAgentResponse(agent=agent)]
    gateway.script["ListAgents"] = [agents_pb2.ListAgentsResponse(agents=[agent])]
    gateway.script["ListNodes"] = [admin_pb2.ListNodesResponse(nodes=[node])]
    gateway.script["DrainNode"] = [admin_pb2.DrainNodeResponse(node=node)]
    assert torpor("deploy", "m:C").stdout == "notebook 2\n"
    assert torpor("agents", "ls").stdout.splitlines()[1].startswith("notebook\t2\tm:C\t")
    assert "n1\t\tdraining\t1/9\t" in torpor("nodes", "ls").stdout
    assert torpor("nodes", "drain", "n1").stdout == "n1 draining 1 sessions\n"


def test_whom_to_call(tmp_path: pathlib.Path) -> None:
    """Options go over environment over what `torpor dev` left, whose key goes nowhere else."""
    (tmp_path / "address").write_text("127.0.0.1:7000\n127.0.0.1:7010\n")
    (tmp_path / "api-key").write_text("tp_dev\n")
    environ = {"TORPOR_ADDRESS": "e:1", "TORPOR_API_KEY": "tp_env", "TORPOR_TENANT": "acme"}

    def found(given: options.Options, environ: dict[str, str]) -> tuple[str, str | None]:
        target = options.target(given, environ, tmp_path)
        return target.address, target.api_key

    assert found(options.Options(), {}) == ("127.0.0.1:7000", "tp_dev")
    assert found(options.Options(address="127.0.0.1:7010"), {}) == ("127.0.0.1:7010", "tp_dev")
    assert found(options.Options(address="localhost:7010"), {}) == ("127.0.0.1:7010", "tp_dev")
    assert found(options.Options(address="localhost:7011"), {}) == ("localhost:7011", None)
    assert found(options.Options(), environ) == ("e:1", "tp_env")
    assert found(options.Options(address="f:1", api_key="tp_f"), environ) == ("f:1", "tp_f")
    assert found(options.Options(address="f:1"), {}) == ("f:1", None)
    assert found(options.Options(api_key="tp_f"), {}) == ("127.0.0.1:7000", "tp_f")
    assert options.target(options.Options(), environ, tmp_path).tenant == "acme"


def test_config_show(gateway: ScriptedGateway, tmp_path: pathlib.Path) -> None:
    """Settings are shown with origins and without the password."""
    (tmp_path / "torpor.yaml").write_text(
        "store_url: redis://user:hunter2@h:1/0\nstorage: s\nscratch: c\nsigning_key_file: k\n"
    )
    result = torpor("config", "show", "--origin", "--set", "gateway_port=9")
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in result.stdout.splitlines()}
    assert rows["store_url"] == ["redis://user:***@h:1/0", f"file {tmp_path}/torpor.yaml"]
    assert rows["gateway_port"] == ["9", "flag --set gateway_port"]
    assert rows["durability"] == ["fsync", "default"]
    assert json.loads(torpor("config", "show", "--json").stdout)["gateway_port"] == "7420"
    refused = torpor("config", "show", "--set", "gateway_prot=9")
    assert refused.exit_code == failures.USAGE
    assert "did you mean gateway_port" in refused.stderr


def test_the_program_itself(gateway: ScriptedGateway) -> None:
    """The installed command works as a process, and loads nothing heavy to say what it can do."""
    command = pathlib.Path(sys.executable).with_name("torpor")
    environ = {**os.environ, "TORPOR_API_KEY": "tp_x"}
    gateway.script["ListSessions"] = [sessions_pb2.ListSessionsResponse(sessions=[SESSION])]
    run = subprocess.run(
        [command, "sessions", "ls"], capture_output=True, text=True, env=environ, check=True
    )
    assert run.stdout.splitlines()[1].startswith("s\tnotebook@1\t")
    assert run.stderr == ""
    assert gateway.metadata["authorization"] == "Bearer tp_x"
    heavy = {"grpc", "ray", "redis", "yaml", "google.protobuf"}
    program = (
        "import sys; from torpor.cli import main; sys.argv = ['torpor', 'version']\n"
        "try: main.main()\n"
        f"finally: print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    light = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert light.stderr.strip() == "[]"
    assert light.stdout.strip()


def test_a_reader_may_leave_early(gateway: ScriptedGateway) -> None:
    """`torpor … | head` ends quietly when `head` has seen enough."""
    events = [common_pb2.Event(seq=seq, data_json='{"text": "x"}') for seq in range(1, 9_000)]
    gateway.script["ListEvents"] = [sessions_pb2.ListEventsResponse(events=events)]
    command = pathlib.Path(sys.executable).with_name("torpor")
    with subprocess.Popen(
        [command, "sessions", "history", "s", "--limit", "9000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as run:
        assert run.stdout
        assert run.stderr
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == b""


def test_usage_is_told(gateway: ScriptedGateway) -> None:
    """A wrong option ends with the usage code; the exit codes are in the help."""
    assert torpor("sessions", "send", "--nonsense").exit_code == failures.USAGE
    assert torpor("dev", "--port", "99999").exit_code == failures.USAGE
    assert torpor("sessions", "history", "s", "--after", str(1 << 64)).exit_code == failures.USAGE
    assert "<bool>" not in torpor("sessions", "ls", "--help").stdout
    late = torpor("sessions", "ls", "--address", "localhost:1")
    assert late.exit_code == failures.USAGE
    assert "it goes before the command" in " ".join(late.stderr.split())
    assert torpor("--version").stdout == torpor("version").stdout
    assert "7 the agent" in " ".join(torpor("--help").stdout.split())
