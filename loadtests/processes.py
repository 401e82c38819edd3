"""The deployment's processes on this machine, and which node each is of."""

import contextlib
from collections.abc import Mapping

import psutil

#: In the environment that a worker of Ray's, or the server that forked it, was started with.
RAYLET = "RAY_RAYLET_PID"
#: In the command line of a fork server.
_FORK_SERVER = "fork_server.main()"


def raylet(environment: Mapping[str, str] | None) -> str:
    """Return the raylet of the process with this environment, which stands for its node.

    Not the parent: that of a forked process is its fork server.
    """
    return (environment or {}).get(RAYLET, "")


def end_fork_servers() -> None:
    """Kill the fork servers of this process's nodes; the next session that needs one starts it."""
    ours = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "raylet":
                ours.add(str(process.pid))
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = process.info["cmdline"] or ()
        is_server = any(word.endswith(_FORK_SERVER) for word in words)
        if is_server and raylet(process.info["environ"]) in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
