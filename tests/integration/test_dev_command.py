"""`torpor dev` as a person runs it: in a folder, in a terminal, ended with Ctrl-C."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

import torpor
from torpor.testing.eventually import assert_eventually

#: Everything starts, or stops, within this on a slow machine.
TIMEOUT_S = 90.0

AGENT = """
import torpor

class Tally(torpor.Agent):
    def __init__(self):
        self.count = 0

    async def on_message(self, ctx, message):
        self.count += len(message.text)
        open("last", "w").write(message.text)
        return str(self.count)
"""


class Command:
    """One run of the command, as the leader of a process group of its own."""

    def __init__(self, folder: pathlib.Path, *arguments: str) -> None:
        self._log = (folder / "dev.log").open("w+")
        self._process = subprocess.Popen(
            [pathlib.Path(sys.executable).with_name("torpor"), "dev", *arguments],
            cwd=folder,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def said(self) -> str:
        """Return what it has told so far."""
        self._log.seek(0)
        return self._log.read()

    async def ready(self) -> None:
        """Wait until it says that it is."""

        async def says_so() -> bool:
            assert self._process.poll() is None, self.said()
            return "ready on" in self.said()

        await assert_eventually(says_so, TIMEOUT_S)

    def press_ctrl_c(self) -> int:
        """Interrupt the whole group, as a terminal does; returns the exit code."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(TIMEOUT_S)

    def end(self) -> int:
        """Wait until it ends by itself; returns the exit code."""
        return self._process.wait(TIMEOUT_S)

    def kill_store(self) -> None:
        """Kill the embedded store without warning."""
        family = psutil.Process(self._process.pid).children(recursive=True)
        for process in family:
            if "valkey-server" in process.name():
                process.kill()

    def close(self) -> None:
        """Kill what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


@contextlib.contextmanager
def _running(folder: pathlib.Path, *arguments: str) -> Iterator[Command]:
    command = Command(folder, *arguments)
    try:
        yield command
    finally:
        command.close()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with an agent in it."""
    (tmp_path / "tally.py").write_text(AGENT)
    return tmp_path


@pytest.fixture
def port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_dev_from_start_to_start(folder: pathlib.Path, port: int) -> None:
    """It starts, answers, keeps others out, ends in order; the next one finds everything again."""
    arguments = ("--port", str(port), "--agent", "tally:Tally")
    address = f"127.0.0.1:{port}"
    with _running(folder, *arguments) as command:
        await command.ready()
        key = (folder / ".torpor" / "api-key").read_text().strip()
        async with torpor.connect(address, api_key=key) as client:
            session = await client.sessions.create("tally", session_id="first")
            assert (await session.send("four")).text == "4"
            with _running(_empty(folder / "second"), "--data-dir", "../.torpor") as second:
                assert second.end() != 0
                assert "another `torpor dev`" in second.said()
                assert "Traceback" not in second.said()
            with _running(_empty(folder / "third"), "--port", str(port)) as third:
                assert third.end() != 0
                assert f"port {port} is taken" in third.said()
                assert "Traceback" not in third.said()
            assert (await session.send("more")).text == "8"
        assert command.press_ctrl_c() == 0, command.said()
        assert "Traceback" not in command.said()
    with _running(folder, *arguments) as command:
        await command.ready()
        async with torpor.connect(address, api_key=key) as client:
            session = client.sessions.handle("first")
            assert not (await session.get()).resident
            assert await session.files.read("last") == b"more"
            assert (await session.send("!")).text == "9"
        assert command.press_ctrl_c() == 0, command.said()


async def test_dev_ends_with_its_store(folder: pathlib.Path, port: int) -> None:
    """A store that dies takes the command with it, which says so; nothing acknowledged is lost."""
    arguments = ("--port", str(port), "--agent", "tally:Tally")
    address = f"127.0.0.1:{port}"
    with _running(folder, *arguments) as command:
        await command.ready()
        key = (folder / ".torpor" / "api-key").read_text().strip()
        async with torpor.connect(address, api_key=key) as client:
            session = await client.sessions.create("tally", session_id="first")
            assert (await session.send("four")).text == "4"
            command.kill_store()
            assert command.end() == 4, command.said()
            assert "the embedded Valkey has ended" in command.said()
            assert "Traceback" not in command.said()
    with _running(folder, *arguments) as command:
        await command.ready()
        async with torpor.connect(address, api_key=key) as client:
            assert (await client.sessions.handle("first").send("!")).text == "5"
        assert command.press_ctrl_c() == 0, command.said()


def _empty(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    return folder
