"""`torpor serve` as an operator runs it first: `ray start`, a Redis, a settings file, keys."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

import pytest
import yaml

import torpor
from torpor.storage import keyring
from torpor.testing import valkey
from torpor.testing.eventually import assert_eventually

#: Everything starts, or stops, within this on a slow machine.
TIMEOUT_S = 90.0
TOOLS = pathlib.Path(sys.executable).parent


class Program:
    """A program in a process group of its own, and what it has said."""

    def __init__(self, log: pathlib.Path, *command: str, env: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [TOOLS / command[0], *command[1:]],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    async def says(self, text: str) -> None:
        """Wait until it has said `text`; it must not end before."""

        async def has_said() -> bool:
            assert self.process.poll() is None, self.said()
            return text in self.said()

        await assert_eventually(has_said, TIMEOUT_S)

    def said(self) -> str:
        """Return all that it has said."""
        return self._log.read_text()

    def ends(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)


@contextlib.contextmanager
def _running(log: pathlib.Path, *command: str, env: Mapping[str, str]) -> Iterator[Program]:
    program = Program(log, *command, env=env)
    try:
        yield program
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """A folder whose path is short enough for the sockets that Ray makes in it."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture
def settings(tmp_path: pathlib.Path) -> Iterator[dict[str, object]]:
    """Settings beside a running store; `path` names their file."""
    keyring.create(tmp_path / "signing-keys")
    with valkey.Server(tmp_path / "store") as store:
        place: dict[str, object] = {
            "store_url": store.url,
            "storage": str(tmp_path / "shared"),
            "scratch": str(tmp_path / "scratch"),
            "signing_key_file": str(tmp_path / "signing-keys"),
            "gateway_port": _free_port(),
            "head_hosts_sessions": True,
        }
        path = tmp_path / "torpor.yaml"
        path.write_text(yaml.safe_dump(place))
        yield {**place, "path": str(path)}


def _torpor(settings: dict[str, object], *arguments: str) -> str:
    done = subprocess.run(
        [TOOLS / "torpor", *arguments, "--config", str(settings["path"])],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_from_ray_start_to_a_session(
    settings: dict[str, object], tmp_path: pathlib.Path, ray_folder: str
) -> None:
    """It brings a cluster into service, and what it started serves on when it has ended."""
    port = _free_port()
    env = {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    start = (
        *(
            "torpor",
            "node",
            "start",
            "--head",
            "--block",
            "--include-dashboard=false",
            "--num-cpus=1",
        ),
        *(f"--port={port}", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000"),
        *(f"--temp-dir={ray_folder}", "--min-worker-port=0", "--max-worker-port=0"),
    )
    with _running(tmp_path / "ray.log", *start, env={"RAY_ADDRESS": ""}) as head:
        await head.says("Ray runtime started")
        _torpor(settings, "tenants", "create", "acme")
        key = json.loads(_torpor(settings, "keys", "create", "acme", "--operator", "--json"))["key"]
        serve_log, path = tmp_path / "serve.log", str(settings["path"])
        with _running(serve_log, "torpor", "serve", "--config", path, env=env) as serve:
            await serve.says("ready")
            gateway = f"127.0.0.1:{settings['gateway_port']}"
            async with torpor.connect(gateway, api_key=key) as client:
                await client.agents.register("torpor.agents.notebook:Notebook")
                session = await client.sessions.create("notebook", session_id="first")
                assert (await session.send("x = 41\nx")).text == "41"
                assert serve.ends(signal.SIGINT) == 0, serve.said()
                assert (await session.send("x + 1")).text == "42"
                await session.evict()
                assert (await session.send("x + 2")).text == "43"


async def test_serve_needs_its_store(settings: dict[str, object], tmp_path: pathlib.Path) -> None:
    """A store that is not there is said in one line, and nothing is started."""
    elsewhere = f"store_url=redis://127.0.0.1:{_free_port()}/0"
    command = ("torpor", "serve", "--config", str(settings["path"]), "--set", elsewhere)
    with _running(tmp_path / "log", *command, env={}) as serve:
        assert serve.process.wait(TIMEOUT_S) == 4
        assert "STORE_UNAVAILABLE" in serve.said()
        assert "Traceback" not in serve.said()


async def test_serve_needs_a_cluster(settings: dict[str, object], tmp_path: pathlib.Path) -> None:
    """A Ray cluster that is not there is said at once, with the remedy."""
    env = {"RAY_ADDRESS": f"127.0.0.1:{_free_port()}"}
    command = ("torpor", "serve", "--config", str(settings["path"]))
    with _running(tmp_path / "log", *command, env=env) as serve:
        assert serve.process.wait(TIMEOUT_S) == 5
        assert "no Ray cluster answers" in serve.said()
        assert "Traceback" not in serve.said()
