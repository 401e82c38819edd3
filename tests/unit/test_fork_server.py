"""The fork server and its starter, with real processes and without Ray's worker program."""

import contextlib
import fcntl
import functools
import io
import json
import multiprocessing.connection
import os
import pathlib
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from torpor.actors.ray_compat import fork_server, worker_starter

FORKS = 200
#: Until a server is up or has failed, on a slow machine that is busy.
START_TIMEOUT_S = 60.0
#: For what sessions must not share, and what they may.
SHARED = functools.partial(pytest.raises, RuntimeError)
HARMLESS = contextlib.nullcontext()

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
    "descriptors": len(os.listdir("/proc/self/fd")),
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
    with contextlib.closing(Server(tmp_path, os.getpid())) as made:
        yield made


@pytest.fixture
def modules(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Return a folder of agents' modules, for servers that this test has for itself."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = tmp_path / "modules"
    folder.mkdir()
    return folder


def _connected(
    modules: pathlib.Path, name: str, timeout_s: float = START_TIMEOUT_S
) -> contextlib.AbstractContextManager[socket.socket]:
    """Connect as a starter does."""
    agent = {"tenant": "t", "agent": "a", "version": 1, "import_path": f"{name}:A"}
    recipe = json.dumps(agent | {"sys_path": [str(modules)]})
    environment = dict(os.environ) | {"RAY_RAYLET_PID": str(os.getpid())}
    return worker_starter.connected(recipe, environment, time.monotonic() + timeout_s)


@contextlib.contextmanager
def _serving(modules: pathlib.Path, name: str) -> Iterator[int]:
    """Yield a server's process, held by a descriptor, and end it."""
    with _connected(modules, name) as server:
        process = os.pidfd_open(_server_pid(server))
    try:
        yield process
    finally:
        _kill(process)


def _kill(process: int) -> None:
    """End a process, which is nobody's child here, and close its descriptor."""
    signal.pidfd_send_signal(process, signal.SIGKILL)
    assert multiprocessing.connection.wait([process], START_TIMEOUT_S)
    os.close(process)


def _is_at_its_end(pipe: int) -> bool:
    """Whether nobody holds the other end; closes this one."""
    os.set_blocking(pipe, False)
    with os.fdopen(pipe, "rb", buffering=0) as file:
        return file.read(1) == b""


def _server_pid(server: socket.socket) -> int:
    option = server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(option[:4], sys.byteorder)


def _fails(modules: pathlib.Path, name: str, why: str, timeout_s: float = START_TIMEOUT_S) -> None:
    with contextlib.ExitStack() as stack, pytest.raises(worker_starter.NotForked, match=why):
        stack.enter_context(_connected(modules, name, timeout_s))


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
    assert all(child[name] for name in ("leader", "sigterm", "sigpipe"))
    assert child["name"] == "__main__"
    # Its own three, the connection to the starter, and the folder being listed.
    assert child["descriptors"] == 3 + 1 + 1


def test_children_that_end_are_reaped(server: Server) -> None:
    """A server leaves no zombies behind."""
    last = [server.fork() for _ in range(4)][-1]
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
    ("source", "why"),
    [
        ("import no_such", "no_such"),
        ("import signal, threading; threading.Thread(target=signal.pause).start()", "2 threads"),
        ("import socket; connection = socket.socket()", r"a socket \(.*\) is open after all"),
        ("import os; os._exit(1)", "without a word"),
    ],
)
def test_a_server_that_cannot_be(source: str, why: str, modules: pathlib.Path) -> None:
    """It is started once, says why, and ends; the agent's next workers start without waiting."""
    told = modules / "told"
    says = f"with open({str(told)!r}, 'a') as told:\n    told.write('x')\n"
    (modules / "fails.py").write_text(says + source)
    for _ in range(2):
        _fails(modules, "fails", why)
    assert told.read_text() == "x"
    (lock,) = modules.parent.glob("*/*.lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)


def test_a_server_that_hangs_is_waited_for_once(modules: pathlib.Path) -> None:
    """An agent whose import does not end keeps the raylet's start-up places for one start only.

    Its server is killed in the end: its timer is set, and is shortened here.
    """
    told = modules / "told"
    os.mkfifo(told)
    (modules / "hangs.py").write_text(
        f"import signal; told = open({str(told)!r}, 'w')\n"
        "print(signal.getitimer(signal.ITIMER_REAL)[0], file=told, flush=True)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.1); signal.pause()"
    )
    for _ in range(2):
        _fails(modules, "hangs", "no fork server came up", timeout_s=0)
    # Until the server has ended.
    assert 0 < float(told.read_text()) < worker_starter.FORK_TIMEOUT_S


@pytest.mark.parametrize(
    ("opened", "expected"),
    [
        (lambda _: socket.socket(), SHARED(match=r"^a socket \(")),
        (lambda _: multiprocessing.Pipe(duplex=False)[0], SHARED(match=r"^a pipe \(")),
        (lambda _: select.epoll(), SHARED(match="^a source of events .*eventpoll")),
        (lambda path: io.FileIO(path, "a"), SHARED(match="^a file for writing .*/file")),
        (sqlite3.connect, SHARED(match="^a file for writing .*/file")),
        (lambda _: io.FileIO(__file__), HARMLESS),
        (lambda _: io.FileIO(os.devnull, "w"), HARMLESS),
    ],
)
def test_what_sessions_must_not_share(opened: Any, expected: Any, tmp_path: pathlib.Path) -> None:
    """Two that talk over one connection get each other's answers; what is only read is no harm."""
    before = fork_server.descriptors()
    with contextlib.closing(opened(tmp_path / "file")), expected:
        fork_server.demand_no_connection(before)


def test_a_server_has_nothing_of_its_starter(modules: pathlib.Path) -> None:
    """It is no child of it, keeps none of the raylet's pipes open, and is timed no more.

    That it is up says that nothing of what all agents import has opened a connection.
    """
    (modules / "timed.py").write_text("import signal; signal.setitimer(signal.ITIMER_REAL, 1)")
    said, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    children = psutil.Process().children()
    with _serving(modules, "timed") as process:
        os.close(write_end)
        assert _is_at_its_end(said)
        assert psutil.Process().children() == children
        assert not multiprocessing.connection.wait([process], 1.5)


@pytest.mark.parametrize("head", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x05", b"\x00"])
def test_what_came_with_a_broken_frame_is_closed(head: bytes) -> None:
    """Requests that fail would use up the server's descriptors one by one."""
    said, write_end = os.pipe()
    one, other = socket.socketpair()
    with one, other:
        socket.send_fds(one, [head], [write_end])
        os.close(write_end)
        one.shutdown(socket.SHUT_WR)
        with pytest.raises((ValueError, EOFError)):
            worker_starter.receive(other, 3)
    assert _is_at_its_end(said)


def test_servers_are_bounded(modules: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of very many agents starts the rest of them as Ray does; dead servers do not count."""
    monkeypatch.setattr(worker_starter, "SERVERS_MAX", 2)
    started = []
    monkeypatch.setattr(worker_starter, "start_server", lambda *asked: started.append(asked))
    folder = pathlib.Path(worker_starter.server_path("{}", {})).parent
    locks = [(folder / f"fork-{number}.lock").open("a") for number in range(3)]
    for lock in locks[:2]:
        fcntl.flock(lock, fcntl.LOCK_EX)
    _fails(modules, "one", "2 fork servers", timeout_s=0)
    assert not started
    locks[0].close()
    _fails(modules, "two", "came up in time", timeout_s=0)
    assert len(started) == 1
    for lock in locks[1:]:
        lock.close()


def test_the_current_folder_is_no_place_to_import_from(
    modules: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child's is the session's workspace, where files lie that others have sent."""
    told, workspace = modules / "told", modules / "workspace"
    workspace.mkdir()
    (workspace / "torpor.py").write_text("raise SystemExit('imported from the current folder')")
    (modules / "teller.py").write_text(
        f"import json, pathlib, sys; pathlib.Path({str(told)!r}).write_text(json.dumps(sys.path))"
    )
    monkeypatch.chdir(workspace)
    with _serving(modules, "teller"):
        path = json.loads(told.read_text())
    assert str(modules) in path
    assert not {"", str(workspace)} & set(path)


def test_starters_share_one_server(modules: pathlib.Path) -> None:
    """The second finds the server of the first, and after its death a new one is started."""
    pids = []
    for number in range(3):
        with _connected(modules, "json") as server:
            pids.append(_server_pid(server))
        if number > 0:
            _kill(os.pidfd_open(pids[-1]))
    assert pids[0] == pids[1] != pids[2]
