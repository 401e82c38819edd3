"""A process that has imported everything, and forks Ray workers that have so from the start.

One serves one agent version of one tenant, for the workers of one job on one raylet: what it has
imported, and so run, is nobody else's. When it forks it has one thread and no connection. It ends
with its raylet, or when nothing was asked of it for long. A child owns nothing of its parent but
memory.

Ray reads its settings when it is imported: so the server runs in the environment of the first
worker that was asked for.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import pathlib
import random
import selectors
import signal
import socket
import stat
import sys
import time
import traceback
import types
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec
import ray
from ray._private import worker

from torpor.actors import heap
from torpor.actors.ray_compat import recipe, worker_starter

#: Without a request for so long it ends: its memory is some tens of megabytes.
IDLE_S = 600.0
#: Requests that wait while one is being forked, which takes milliseconds.
BACKLOG = 128
#: A starter sends its request in one piece.
REQUEST_TIMEOUT_S = 2.0
#: The kernel takes microseconds to end a thread, on a busy machine some turns of the scheduler.
THREAD_END_S = 1.0
_THREAD_LOOK_S = 0.001
#: How often a server looks whether it is idle.
_LOOK_EVERY_S = 5.0
#: What forks would share that each takes for its own; what is none of these is a source of events.
_SHARED = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a pipe",
    stat.S_IFREG: "a file for writing",
}
#: In a child: what its server had imported.
inherited: frozenset[str] = frozenset()
#: Imported by every worker that has served a call, beside what its actor's module imports: what a
#: child has to import itself it pays for in time, and in memory that is not shared.
PRELOADED = (
    "argparse",
    "pydantic.v1",
    "ray._common.pydantic_compat",
    "ray._common.usage.usage_lib",
    "ray._private.arrow_serialization",
    "ray._private.workers",
    "torpor.actors.session",
)


def main() -> NoReturn:
    """Import, listen, fork until the raylet is gone.

    The command line names the socket, and a descriptor that is held as long as this process is.
    """
    code = 1
    path, lock = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(lock, False)
    failed = pathlib.Path(f"{path}{worker_starter.FAILED}")
    failed.unlink(missing_ok=True)
    try:
        made_for = msgspec.json.decode(os.environ.pop(worker_starter.RECIPE), type=recipe.Recipe)
        raylet = os.pidfd_open(int(os.environ["RAY_RAYLET_PID"]))
        before = descriptors()
        preload(made_for)
        # Once for both: what is garbage is neither shared with children nor leaves holes later.
        gc.collect()
        heap.fill_holes()
        # Set by the starter, for what hangs so far.
        signal.setitimer(signal.ITIMER_REAL, 0)
        demand_one_thread()
        demand_no_connection(before)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(BACKLOG)
            Server(listener, raylet).serve([lock])
        code = 0
    except BaseException as error:
        traceback.print_exc()
        failed.write_text(f"the fork server ended: {type(error).__name__}: {error}")
    finally:
        path.unlink(missing_ok=True)
        # Whoever leaves in order waits for the threads that the agent may have started.
        _exit(code)


def preload(made_for: recipe.Recipe) -> None:
    """Import all that a session of this agent uses."""
    # In the order of the process that asked, so that the same modules are found.
    sys.path[:] = [*made_for.sys_path, *(p for p in sys.path if p not in made_for.sys_path)]
    for name in PRELOADED:
        importlib.import_module(name)
    # Before the agent's module, so that nothing of it runs here but its import.
    warm_up()
    importlib.import_module(made_for.import_path.partition(":")[0])


def warm_up() -> None:
    """Play lives of sessions; where that fails children are forked as well, and are slower."""
    try:
        importlib.import_module("torpor.actors.rehearsal").rehearse()
    except Exception:
        traceback.print_exc()
    gc.collect()
    # A thread that was joined is gone a moment later.
    ends_s = time.monotonic() + THREAD_END_S
    while _threads() != 1 and time.monotonic() < ends_s:
        time.sleep(_THREAD_LOOK_S)


def demand_one_thread() -> None:
    """Raise RuntimeError if there are more: the others would be missing in a child, locks held."""
    if (threads := _threads()) != 1:
        raise RuntimeError(f"{threads} threads after all imports; only one can be forked")


def _threads() -> int:
    return len(list(pathlib.Path("/proc/self/task").iterdir()))


def descriptors() -> dict[int, str]:
    """Return what each open descriptor leads to."""
    found = {}
    for link in pathlib.Path("/proc/self/fd").iterdir():
        # That of the listing itself is closed by now.
        with contextlib.suppress(FileNotFoundError):
            found[int(link.name)] = str(link.readlink())
    return found


def demand_no_connection(before: dict[int, str]) -> None:
    """Raise RuntimeError if more is open than before that sessions must not share.

    They may share what is only read, and devices.
    """
    for descriptor, leads_to in sorted(descriptors().items() - before.items()):
        mode = os.fstat(descriptor).st_mode
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        is_read = access == os.O_RDONLY and (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
        if not is_read and not stat.S_ISCHR(mode):
            kind = _SHARED.get(stat.S_IFMT(mode), "a source of events")
            raise RuntimeError(
                f"{kind} ({leads_to}) is open after all imports; all sessions would share it"
            )


class Server:
    """The loop of a server that has imported everything."""

    def __init__(
        self, listener: socket.socket, raylet: int, program: types.CodeType | None = None
    ) -> None:
        """`raylet` is a descriptor of its process; `program` what children run if not workers."""
        self._listener = listener
        self._raylet = raylet
        self._program = program or worker_program()
        self._children: set[int] = set()
        self._asked_s = time.monotonic()
        self._owned: list[int] = []

    def serve(self, owned: Sequence[int] = ()) -> None:
        """Fork a worker for each request; returns when the raylet is gone, or after idleness.

        No child keeps `owned`, as it keeps nothing else that is the server's.
        """
        # Signals of children that end write here, so that the loop hears of them.
        ended, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        # To list all modules in a child would copy the pages of their names.
        _note_inherited()
        gc.freeze()
        self._owned = [*owned, self._raylet, ended, write_end]
        with selectors.DefaultSelector() as selector:
            for descriptor in (self._listener.fileno(), self._raylet, ended):
                selector.register(descriptor, selectors.EVENT_READ)
            while not self._idle():
                ready = {key.fd for key, _ in selector.select(_LOOK_EVERY_S)}
                if self._raylet in ready:
                    return
                if ended in ready:
                    os.read(ended, 4096)
                    self._reap()
                if self._listener.fileno() in ready:
                    self._asked_s = time.monotonic()
                    self._answer(selector)

    def _idle(self) -> bool:
        # Children outlive it only with the raylet: else nobody might reap them.
        return not self._children and time.monotonic() - self._asked_s > IDLE_S

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._children.discard(pid)

    def _answer(self, selector: selectors.BaseSelector) -> None:
        starter, _ = self._listener.accept()
        descriptors: list[int] = []
        with starter:
            starter.settimeout(REQUEST_TIMEOUT_S)
            demand_one_thread()
            try:
                frame, descriptors = worker_starter.receive(starter, 3)
                request = json.loads(frame)
                child = os.fork()
            except (OSError, ValueError, EOFError):
                # It has given up, or the machine has no room for a fork: it starts the worker.
                child = -1
            if child == 0:
                selector.close()
                self._listener.close()
                for descriptor in self._owned:
                    os.close(descriptor)
                become_worker(request, descriptors, starter, self._program)
            if child > 0:
                self._children.add(child)
        for descriptor in descriptors:
            os.close(descriptor)


def worker_program() -> types.CodeType:
    """Return Ray's own worker program."""
    path = pathlib.Path(ray.__file__).parent / "_private/workers/default_worker.py"
    return compile(path.read_text(), str(path), "exec")


def become_worker(
    request: dict[str, Any],
    descriptors: list[int],
    starter: socket.socket,
    program: types.CodeType,
) -> NoReturn:
    """Be the worker that a starter was asked for."""
    code = 1
    try:
        # The raylet ends workers by their process groups.
        os.setsid()
        signal.set_wakeup_fd(-1)
        worker_starter.send(starter, str(os.getpid()).encode(), [])
        # SIGPIPE stays ignored, as in every Python process: else a peer's end would be its own.
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        _take_over(request)
        _reseed()
        _report_connection(starter)
        run_worker(program, request["arguments"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _exit(code)


def run_worker(program: types.CodeType, arguments: list[str]) -> None:
    """Run Ray's worker program as if it had been started with these arguments."""
    sys.argv = list(arguments)
    module = types.ModuleType("__main__")
    module.__file__ = arguments[0]
    sys.modules["__main__"] = module
    exec(program, module.__dict__)  # noqa: S102


def _exit(code: int) -> NoReturn:
    """End now, whatever threads there are."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _take_over(request: dict[str, Any]) -> None:
    """Have what a child of the raylet would have."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ[worker_starter.FORKED_BY] = str(os.getppid())
    os.environ.pop(worker_starter.RECIPE, None)
    os.chdir(request["folder"])
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, request["niceness"])
    with contextlib.suppress(PermissionError):
        pathlib.Path("/proc/self/oom_score_adj").write_text(request["oom_score"])


def _note_inherited() -> None:
    global inherited
    inherited = frozenset(sys.modules)


def _reseed() -> None:
    """Let no two children draw the same numbers."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


def _report_connection(starter: socket.socket) -> None:
    """Tell the starter when the raylet has registered this process."""
    connect = worker.connect

    def connect_and_report(*arguments: Any, **named: Any) -> Any:
        result = connect(*arguments, **named)
        with contextlib.suppress(OSError), starter:
            starter.sendall(worker_starter.CONNECTED)
        worker.connect = connect
        return result

    worker.connect = connect_and_report
