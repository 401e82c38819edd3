"""What a raylet runs to start a worker, up to the fork server that it asks."""

import json
import os
import pathlib
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
