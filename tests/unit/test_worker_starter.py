"""What a raylet runs to start a worker, up to the fork server that it asks."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from torpor.actors.ray_compat import worker_starter

CONTEXT = worker_starter.CONTEXT_ARGUMENT


def test_a_starter_imports_little() -> None:
    """Each start of a worker pays for what it imports."""
    program = (
        "import runpy, sys; before = set(sys.modules); "
        "runpy.run_path(sys.argv[1], run_name='starter'); "
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-I", "-S", "-c", program, worker_starter.__file__]
    imported = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "json" in imported
    assert not {"hashlib", "pathlib", "random", "shutil", "signal", "tempfile"} & set(imported)


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
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    worker_starter.server_path("{}", {})
    (tmp_path / f"torpor-{os.getuid()}").chmod(0o777)
    with pytest.raises(worker_starter.NotForked, match="not ours alone"):
        worker_starter.server_path("{}", {})


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


def test_a_server_that_does_not_answer_is_waited_for_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start that waits in vain holds a place that other agents lack."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(worker_starter, "FORK_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(worker_starter.server_path("{}", {}))
        silent.listen(8)
        for _ in range(2):
            with pytest.raises(worker_starter.NotForked, match="does not answer"):
                worker_starter.fork("{}", {}, [])
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_without_a_cheap_hash_another_is_taken(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every Python has it, and a starter that fails leaves the raylet without workers."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "_blake2", None)
    first, second = (worker_starter.server_path(recipe, {}) for recipe in ("{}", "[]"))
    assert first != second


def test_what_servers_of_long_ago_have_left_is_removed(tmp_path: pathlib.Path) -> None:
    """Each raylet, job and agent version has names of its own; a starter's that goes on stays."""
    for name in ("old", "new", "living"):
        for suffix in ("", worker_starter.FAILED, worker_starter.LOCK):
            (tmp_path / f"fork-{name}{suffix}").touch()
    for name in ("old", "living"):
        os.utime(tmp_path / f"fork-{name}{worker_starter.LOCK}", (0, 0))
    living = tmp_path / f"fork-living{worker_starter.LOCK}"
    with living.open() as held:
        assert worker_starter._locks(held.fileno(), str(living))
        assert worker_starter._servers(str(tmp_path)) == 1
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {
        "fork-new",
        "fork-living",
    }


def test_a_lock_that_was_removed_is_none(tmp_path: pathlib.Path) -> None:
    """Two that hold one each would start two servers."""
    path = tmp_path / "lock"
    with path.open("w") as first:
        path.unlink()
        path.touch()
        assert not worker_starter._locks(first.fileno(), str(path))
