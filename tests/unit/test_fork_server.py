"""The fork server and its starter, with real processes and without Ray's worker program."""

import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from torpor.actors.ray_compat import worker_starter

FORKS = 200
CONTEXT = worker_starter.CONTEXT_ARGUMENT

#: Serves forks that run a program of the test's; the raylet is the test itself.
SERVER = """
import os, socket, sys
from torpor.actors.ray_compat import fork_server
import numpy
program = compile(open(sys.argv[2]).read(), "program", "exec")
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
    listener.bind(sys.argv[1])
    listener.listen(fork_server.BACKLOG)
    print("up", flush=True)
    fork_server.Server(listener, os.pidfd_open(int(sys.argv[3])), program).serve()
"""
#: Says what a child is made of.
PROGRAM = """
import json, os, random, signal, ssl, sys, uuid
import numpy
from torpor import ids
print(json.dumps({
    "drawn": [random.random(), float(numpy.random.rand()), str(uuid.uuid4()),
              ssl.RAND_bytes(8).hex(), ids.nonce()],
    "environment": dict(os.environ), "folder": os.getcwd(), "arguments": sys.argv,
    "leader": os.getsid(0) == os.getpid(), "name": __name__,
    "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "sigpipe": signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN,
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
}))
"""


class Server:
    """A fork server that runs `PROGRAM`, and what its children said."""

    def __init__(self, folder: pathlib.Path, raylet: int) -> None:
        self.path = folder / "server"
        program = folder / "program.py"
        program.write_text(PROGRAM)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.path), str(program), str(raylet)],
            stdout=subprocess.PIPE,
            env=os.environ | worker_starter.ONE_THREAD,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()

    def fork(self, **request: object) -> dict[str, object]:
        """Have a child forked, and return what it says."""
        asked = {
            "arguments": ["worker.py", "--node"],
            "environment": {"NAME": "value"},
            "folder": "/",
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
            "oom_score": "0",
        } | request
        said, write_end = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as starter:
            starter.connect(str(self.path))
            null = os.open(os.devnull, os.O_RDONLY)
            worker_starter.send(starter, json.dumps(asked).encode(), [null, write_end, 2])
            os.close(write_end)
            os.close(null)
            child, _ = worker_starter.receive(starter)
        with os.fdopen(said) as file:
            found: dict[str, object] = json.loads(file.read())
        return found | {"pid": int(child)}


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[Server]:
    """Yield a server whose raylet is this process."""
    made = Server(tmp_path, os.getpid())
    yield made
    made.close()


def test_forks_draw_different_numbers(server: Server) -> None:
    """Random numbers, ids, TLS bytes and nonces of 200 children are all different."""
    drawn = [server.fork()["drawn"] for _ in range(FORKS)]
    for of_one_kind in zip(*drawn, strict=True):  # type: ignore[call-overload]
        assert len(set(of_one_kind)) == FORKS


def test_a_child_is_what_the_raylet_would_have_started(
    server: Server, tmp_path: pathlib.Path
) -> None:
    """It has the starter's environment, folder and arguments, a session of its own, no sockets."""
    child = server.fork(folder=str(tmp_path))
    environment = child["environment"]
    assert isinstance(environment, dict)
    assert environment.pop(worker_starter.FORKED_BY) == str(server.process.pid)
    assert environment.pop("LC_CTYPE", "C.UTF-8") == "C.UTF-8"
    assert environment == {"NAME": "value"}
    assert (child["folder"], child["arguments"]) == (str(tmp_path), ["worker.py", "--node"])
    assert child["leader"]
    assert child["sigterm"]
    assert child["sigpipe"]
    assert child["name"] == "__main__"
    # Its own three, the connection to the starter, and the folder being listed.
    descriptors = child["descriptors"]
    assert isinstance(descriptors, list)
    assert len(descriptors) == 3 + 1 + 1


def test_children_that_end_are_reaped(server: Server) -> None:
    """A server leaves no zombies behind."""
    for _ in range(3):
        server.fork()
    last = server.fork()
    # It reaps before it forks the next.
    server.fork()
    assert not pathlib.Path(f"/proc/{last['pid']}").exists()


def test_the_server_ends_with_its_raylet(tmp_path: pathlib.Path) -> None:
    """A raylet that is gone takes its servers along."""
    raylet = subprocess.Popen(["sleep", "1000"])
    made = Server(tmp_path, raylet.pid)
    made.fork()
    raylet.kill()
    raylet.wait()
    assert made.process.wait(timeout=30) == 0
    made.close()


def test_a_starter_that_leaves_does_not_stop_the_server(server: Server) -> None:
    """Half a request, or rubbish, is no harm to the next."""
    for rubbish in (b"", b"\x00\x00\x00\x05ab", b"\xff\xff\xff\xff", b"\x00\x00\x00\x02[]"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as starter:
            starter.connect(str(server.path))
            starter.sendall(rubbish)
    assert server.fork()["leader"]


@pytest.mark.parametrize(
    ("context", "language"),
    [
        ({}, "PYTHON"),
        ({"env_vars": {"OTHER": "x"}}, "PYTHON"),
        ({"env_vars": {worker_starter.RECIPE: "{}"}}, "JAVA"),
        ({"env_vars": {worker_starter.RECIPE: "{}"}, "command_prefix": ["nice"]}, "PYTHON"),
        ({"env_vars": {worker_starter.RECIPE: "{}"}, "py_executable": "/other"}, "PYTHON"),
        ({"env_vars": {worker_starter.RECIPE: "{}", "A": "${B}"}}, "PYTHON"),
        ({"env_vars": {worker_starter.RECIPE: "{}"}, "news": 1}, "PYTHON"),
    ],
)
def test_what_is_not_known_takes_the_stock_path(context: object, language: str) -> None:
    """Only a worker with our recipe, and nothing else that would have to be set up, is forked."""
    arguments = [CONTEXT + json.dumps(context), worker_starter.LANGUAGE_ARGUMENT + language]
    assert worker_starter.parse(arguments, {})[0] == ""


def test_a_recipe_is_found_and_the_environment_is_the_workers() -> None:
    """The starter's own arguments are taken away, variables of the runtime environment set."""
    context = {"env_vars": {worker_starter.RECIPE: "{}", "A": "b"}, "py_executable": sys.executable}
    recipe, environment, rest = worker_starter.parse(
        ["default_worker.py", CONTEXT + json.dumps(context), "--language=PYTHON", "--node-id=1"],
        {"C": "d"},
    )
    assert (recipe, rest) == ("{}", ["default_worker.py", "--node-id=1"])
    assert environment == {"C": "d", "A": "b", worker_starter.RECIPE: "{}"}


def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who could put a socket there could have our workers do what he likes."""
    monkeypatch.setattr(worker_starter.tempfile, "gettempdir", lambda: str(tmp_path))
    worker_starter.server_path("{}", {})
    (tmp_path / f"torpor-{os.getuid()}").chmod(0o777)
    with pytest.raises(worker_starter.NotForked, match="not ours alone"):
        worker_starter.server_path("{}", {})


def test_a_server_that_cannot_start_is_not_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that cannot be imported is said once; the next workers start without asking."""
    monkeypatch.setattr(worker_starter.tempfile, "gettempdir", lambda: str(tmp_path))
    recipe = json.dumps(
        {"tenant": "t", "agent": "a", "version": 1, "import_path": "no_such:A", "sys_path": []}
    )
    environment = dict(os.environ) | {"RAY_RAYLET_PID": str(os.getpid())}
    for _ in range(2):
        with (
            pytest.raises(worker_starter.NotForked, match="no_such"),
            worker_starter.connected(recipe, environment, time.monotonic() + 60),
        ):
            pass


def test_a_server_that_hangs_is_waited_for_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent whose import does not end keeps the raylet's start-up places for one start only."""
    monkeypatch.setattr(worker_starter.tempfile, "gettempdir", lambda: str(tmp_path))
    started = []
    monkeypatch.setattr(worker_starter, "start_server", lambda *asked: started.append(asked))
    for _ in range(2):
        with (
            pytest.raises(worker_starter.NotForked, match="no fork server came up"),
            worker_starter.connected("{}", {}, time.monotonic()),
        ):
            pass
    assert len(started) == 1


def test_servers_are_bounded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of very many agents starts the rest of them as Ray does; dead servers do not count."""
    monkeypatch.setattr(worker_starter.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(worker_starter, "SERVERS_MAX", 2)
    started = []
    monkeypatch.setattr(worker_starter, "start_server", lambda *asked: started.append(asked))
    folder = worker_starter.server_path("{}", {}).parent
    locks = [(folder / f"fork-{number}.lock").open("a") for number in range(3)]

    def connect(recipe: str, match: str) -> None:
        with (
            pytest.raises(worker_starter.NotForked, match=match),
            worker_starter.connected(recipe, {}, time.monotonic()),
        ):
            pass

    for lock in locks[:2]:
        fcntl.flock(lock, fcntl.LOCK_EX)
    connect("one", "2 fork servers")
    assert not started
    locks[0].close()
    connect("two", "came up in time")
    assert len(started) == 1
    for lock in locks[1:]:
        lock.close()


@pytest.mark.parametrize("context", ["no JSON", '{"env_vars": {"NAME": 1}}', "[]"])
def test_whatever_is_not_understood_is_left_to_ray(
    context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A starter that fails in a new way would leave the raylet waiting for a worker."""
    became: list[list[str]] = []
    monkeypatch.setattr(worker_starter.os, "execv", lambda _, command: became.append(command))
    arguments = [CONTEXT + context, "--language=PYTHON", "/ray/default_worker.py"]
    worker_starter.main(arguments)
    assert became == [[sys.executable, "/ray/setup_worker.py", *arguments]]


def test_the_current_folder_is_no_place_to_import_from(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child's is the session's workspace, where files lie that others have sent."""
    monkeypatch.setattr(worker_starter.tempfile, "gettempdir", lambda: str(tmp_path))
    told = tmp_path / "told.json"
    (tmp_path / "teller.py").write_text(
        f"import json, sys; json.dump(sys.path, open({str(told)!r}, 'w'))"
    )
    recipe = {"tenant": "t", "agent": "a", "version": 1, "import_path": "teller:A"}
    recipe_text = json.dumps(recipe | {"sys_path": [str(tmp_path)]})
    environment = dict(os.environ) | {"RAY_RAYLET_PID": str(os.getpid())}
    with worker_starter.connected(recipe_text, environment, time.monotonic() + 60) as server:
        pid = _server_pid(server)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    path = json.loads(told.read_text())
    assert str(tmp_path) in path
    assert "" not in path


def test_starters_share_one_server(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the server of the first, and after its death a new one is started."""
    monkeypatch.setattr(worker_starter.tempfile, "gettempdir", lambda: str(tmp_path))
    recipe = json.dumps(
        {"tenant": "t", "agent": "a", "version": 1, "import_path": "json:A", "sys_path": []}
    )
    environment = dict(os.environ) | {"RAY_RAYLET_PID": str(os.getpid())}
    pids = []
    for _ in range(3):
        with worker_starter.connected(recipe, environment, time.monotonic() + 60) as server:
            pids.append(_server_pid(server))
        if len(pids) == 2:
            os.kill(pids[0], signal.SIGKILL)
            os.waitpid(pids[0], 0)
    os.kill(pids[2], signal.SIGKILL)
    os.waitpid(pids[2], 0)
    assert pids[0] == pids[1] != pids[2]


def _server_pid(server: socket.socket) -> int:
    option = server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(option[:4], sys.byteorder)
