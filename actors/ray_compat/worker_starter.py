"""What a raylet runs to start a worker, in place of Ray's `setup_worker.py`.

Asks the fork server of the agent for a child that becomes the worker; starts that server where
there is none. Whatever is not as expected ends in what Ray itself would have done, in this process:
so it is run as a program, and imports nothing but what Python brings. Each start of a worker pays
for these imports: most modules of the standard library cost more than all that is done here.

A worker's start occupies one of the raylet's few start-up places until the worker has registered,
up to a minute: so every wait here is bounded, and its end is the stock path.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

#: In the runtime environment of what may be forked: JSON of `recipe.Recipe`.
RECIPE = "TORPOR_FORK"
#: Set in a worker that has our recipe and was not forked, to the reason.
NOT_FORKED = "TORPOR_NOT_FORKED"
#: Set in a process that was forked, to its server's process id.
FORKED_BY = "TORPOR_FORKED_BY"
CONTEXT_ARGUMENT = "--serialized-runtime-env-context="
LANGUAGE_ARGUMENT = "--language="
#: From a worker's start to its registration, a new server's imports included, on a busy machine. It
#: leaves the stock path half of the minute that the raylet waits. A server whose imports take
#: longer is killed: nobody waits for it any more.
FORK_TIMEOUT_S = 30.0
#: Libraries that start threads as they are imported, which no fork survives, are told not to: a
#: node's processors are shared by many sessions. Who sets another number has no forks.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
#: Beside a server's socket: held as long as it lives; why it could not start.
LOCK, FAILED = ".lock", ".failed"
#: As `signal` has it.
SIGKILL = 9
#: How often a starter looks whether another's server is up.
_LOOK_EVERY_S = 0.02
#: What a server that could not start leaves keeps others from trying for so long.
FAILED_S = 60.0
#: Fork servers of one user on one machine, of some tens of megabytes each. One more would take as
#: much memory as it saves, where sessions are of so many agents.
SERVERS_MAX = 64
#: An environment and arguments are some kilobytes; more is not ours.
FRAME_BYTES_MAX = 4 << 20
#: Of the reason why a worker was not forked.
REASON_CHARS_MAX = 500
#: What a server answers with: the child's number in a frame, then this as soon as it has connected.
CONNECTED = b"c"


class NotForked(Exception):
    """Why the stock path is taken."""


def main(arguments: list[str]) -> NoReturn:
    """Start the worker that the command line describes."""
    try:
        recipe, environment, rest = parse(arguments, dict(os.environ))
        if recipe:
            fork(recipe, environment, rest)
            os._exit(0)
    except Exception as error:
        # Standard error is the worker's log; the node's agent says it once in the service's.
        reason = f"{type(error).__name__}: {error}"[:REASON_CHARS_MAX]
        sys.stderr.write(f"torpor: not forked: {reason}\n")
        sys.stderr.flush()
        os.environ[NOT_FORKED] = reason.replace("\0", "")
    os.execv(sys.executable, [sys.executable, stock_starter(arguments), *arguments])  # noqa: S606


def parse(
    arguments: list[str], environment: dict[str, str]
) -> tuple[str, dict[str, str], list[str]]:
    """Return the recipe, empty if the worker is not to be forked, its environment and arguments."""
    context: dict[str, Any] = {}
    rest, language = [], ""
    for argument in arguments:
        if argument.startswith(CONTEXT_ARGUMENT):
            context = json.loads(argument.removeprefix(CONTEXT_ARGUMENT))
        elif argument.startswith(LANGUAGE_ARGUMENT):
            language = argument.removeprefix(LANGUAGE_ARGUMENT)
        else:
            rest.append(argument)
    variables = context.get("env_vars") or {}
    known = {"env_vars", "py_executable"}
    plain = (
        language == "PYTHON"
        and context.get("py_executable", sys.executable) == sys.executable
        and not any(value for name, value in context.items() if name not in known)
        and not any("$" in value for value in variables.values())
    )
    recipe = variables.get(RECIPE, "") if plain else ""
    return recipe, environment | variables, rest


def fork(recipe: str, environment: dict[str, str], arguments: list[str]) -> None:
    """Have a worker forked and await its registration.

    Raises:
        NotForked: it is not there, and will not come.
        OSError
    """
    ends_s = time.monotonic() + FORK_TIMEOUT_S
    with connected(recipe, environment, ends_s) as server:
        request = {
            "arguments": arguments,
            "environment": environment,
            "folder": os.getcwd(),
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
            "oom_score": _text("/proc/self/oom_score_adj"),
        }
        child = 0
        try:
            server.settimeout(_left_s(ends_s))
            send(server, json.dumps(request).encode(), [0, 1, 2])
            server.settimeout(_left_s(ends_s))
            answer, _ = receive(server)
            child = int(answer)
            server.settimeout(_left_s(ends_s))
            if server.recv(1) == CONNECTED:
                return
        except (OSError, ValueError, EOFError) as error:
            if isinstance(error, TimeoutError) and not child:
                _give_up(server_path(recipe, environment), "the fork server does not answer")
            reason = f"{type(error).__name__} {error}"
        else:
            reason = "it ended"
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, SIGKILL)
        raise NotForked(f"the child {child} did not register: {reason}")


@contextlib.contextmanager
def connected(recipe: str, environment: dict[str, str], ends_s: float) -> Iterator[socket.socket]:
    """Yield a connection to the recipe's server, which is started if need be.

    Raises:
        NotForked: there is none, and will be none soon.
    """
    path = server_path(recipe, environment)
    _demand_hope(path)
    started = False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.settimeout(_left_s(ends_s))
        while not _connects(server, path):
            _demand_hope(path)
            with open(path + LOCK, "a") as lock:
                if _locks(lock.fileno(), path + LOCK):
                    if _connects(server, path):
                        break
                    # Perhaps it said so just now, as it ended.
                    _demand_hope(path)
                    if started:
                        _give_up(path, "the fork server ended as it started, without a word")
                    # The lock that is held here counts, too.
                    if _servers(os.path.dirname(path)) > SERVERS_MAX:
                        raise NotForked(f"{SERVERS_MAX} fork servers run on this node already")
                    # The lock goes to the server, and with its end.
                    start_server(path, recipe, environment, lock.fileno())
                    started = True
            if time.monotonic() > ends_s:
                _give_up(path, "no fork server came up in time")
            time.sleep(_LOOK_EVERY_S)
        yield server


def start_server(path: str, recipe: str, environment: dict[str, str], lock: int) -> None:
    """Start a server in the background, with the environment of this worker.

    Ray reads its settings from there when it is imported.
    """
    import signal

    # Not as a program: its children are to find the module that they come from. `-P`: nothing is
    # imported from the current folder, which in a child is the session's workspace.
    run = "from torpor.actors.ray_compat import fork_server; fork_server.main()"
    command = [sys.executable, "-P", "-c", run, path, str(lock)]
    if child := os.fork():
        os.waitpid(child, 0)
        return
    try:
        # Forked twice, so that it is no child of this process, which may become a session's.
        if os.fork():
            os._exit(0)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # What the raylet gave to this worker is not for the server and all its children.
        os.closerange(3, lock)
        os.closerange(lock + 1, os.sysconf("SC_OPEN_MAX"))
        os.set_inheritable(lock, True)
        # Stays set in the new program: imports that hang would hold the lock for ever.
        signal.setitimer(signal.ITIMER_REAL, FORK_TIMEOUT_S)
        os.execve(  # noqa: S606
            sys.executable, command, ONE_THREAD | environment | {RECIPE: recipe}
        )
    finally:
        os._exit(1)


def server_path(recipe: str, environment: dict[str, str]) -> str:
    """Return where the server of a recipe listens: one for each raylet, job, tenant and agent.

    Raises:
        NotForked: the folder is not ours alone.
    """
    folder = os.path.join(_shared_folder(), f"torpor-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, mode=0o700)
    found = os.lstat(folder)
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or os.path.islink(folder):
        raise NotForked(f"{folder} is not ours alone")
    ray_settings = sorted(
        (name, value) for name, value in environment.items() if name.startswith("RAY_")
    )
    said = json.dumps([recipe, ray_settings, sys.executable])
    return os.path.join(folder, f"fork-{_digest(said.encode())}")


def _shared_folder() -> str:
    """Return the folder that `tempfile.gettempdir` would."""
    named = filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP")))
    for folder in (*map(os.path.abspath, named), "/tmp", "/var/tmp"):  # noqa: S108 — it is checked
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise NotForked("no folder for temporary files can be written to")


def _digest(said: bytes) -> str:
    try:
        # What `hashlib` loads beside it costs more than all else here.
        from _blake2 import blake2b
    except ImportError:
        import hashlib

        return hashlib.sha256(said).hexdigest()[:24]
    return blake2b(said, digest_size=12).hexdigest()


def stock_starter(arguments: list[str]) -> str:
    """Return the path of Ray's own starter, which lies beside its worker."""
    for argument in arguments:
        if argument.endswith("default_worker.py"):
            return os.path.join(os.path.dirname(argument), "setup_worker.py")
    # Not a worker of Ray's: it cannot be found more cheaply.
    import ray

    return os.path.join(os.path.dirname(ray.__file__), "_private/workers/setup_worker.py")


def send(to: socket.socket, frame: bytes, descriptors: list[int]) -> None:
    """Send a frame, and descriptors with it."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    head = len(frame).to_bytes(4, "big")
    to.sendmsg([head], rights if descriptors else [])
    to.sendall(frame)


def receive(source: socket.socket, descriptors_max: int = 0) -> tuple[bytes, list[int]]:
    """Return a frame, and the descriptors that came with it; none stays open if it raises.

    Raises:
        EOFError: the other side has gone.
        ValueError: a frame that is too large.
    """
    size = array.array("i").itemsize
    head, rights, _, _ = source.recvmsg(4, socket.CMSG_SPACE(descriptors_max * size))
    descriptors = array.array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % size])
    try:
        return _frame(source, head), list(descriptors)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _left_s(ends_s: float) -> float:
    """Return what is left, for a timeout, which must not be nothing: that would mean no waiting."""
    return max(0.01, ends_s - time.monotonic())


def _frame(source: socket.socket, head: bytes) -> bytes:
    if len(head) < 4:
        raise EOFError
    length = int.from_bytes(head, "big")
    if length > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {length} bytes")
    frame = bytearray()
    while len(frame) < length:
        piece = source.recv(length - len(frame))
        if not piece:
            raise EOFError
        frame += piece
    return bytes(frame)


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


def _connects(server: socket.socket, path: str) -> bool:
    try:
        server.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _locks(descriptor: int, path: str) -> bool:
    """Whether a file could be locked that still lies at its path."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _servers(folder: str) -> int:
    """Count the servers that live, each of which holds its lock, and remove what others left."""
    found = 0
    for name in os.listdir(folder):
        if name.endswith(LOCK):
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError), open(path) as lock:
                if not _locks(lock.fileno(), path):
                    found += 1
                elif time.time() - os.fstat(lock.fileno()).st_mtime > FAILED_S:
                    # The lock comes last: whoever finds it gone makes another.
                    for suffix in ("", FAILED, LOCK):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(path.removesuffix(LOCK) + suffix)
    return found


def _demand_hope(path: str) -> None:
    """Raise NotForked if a server said lately why it cannot be."""
    with contextlib.suppress(FileNotFoundError):
        # A clock that is set back costs a late try, no more.
        if time.time() - os.stat(path + FAILED).st_mtime < FAILED_S:
            raise NotForked(_text(path + FAILED))


def _give_up(path: str, reason: str) -> NoReturn:
    """Raise NotForked here, and for a while in others that would try.

    Each that waits in vain holds a start-up place, which other agents lack.
    """
    # Whole at once: others may be reading.
    with open(f"{path}.{os.getpid()}", "w") as file:
        file.write(reason)
    os.replace(file.name, path + FAILED)
    raise NotForked(reason)


if __name__ == "__main__":
    # The folder of this file is no place to import from.
    del sys.path[0]
    main(sys.argv[1:])
