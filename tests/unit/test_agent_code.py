"""Finding an agent by its import path, and describing it from a process of its own."""

import pathlib
import subprocess
import sys

import msgspec
import pytest

from torpor import definition, errors
from torpor.actors import agent_code, protocol

MODULE = """
import torpor

print("noise on import")

class Quick(torpor.Agent):
    idle_timeout = "2s"
    turn_timeout = "1m"
    workspace_quota_bytes = 1000

@torpor.agent
async def echo(ctx, message):
    return message.text

class Odd(torpor.Agent):
    idle_timeout = "soon"

not_a_class = 7
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder with a module of agents, importable here."""
    (tmp_path / "some_agents.py").write_text(MODULE)
    (tmp_path / "exits.py").write_text("import sys; sys.exit('no')")
    (tmp_path / "raises.py").write_text("def deep():\n    raise OSError('no disk')\n\ndeep()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("some_agents", None)


def test_description(folder: pathlib.Path) -> None:
    """Name and settings are read from the class; the digest changes with code and settings."""
    found = agent_code.describe("some_agents:Quick")
    assert (found.import_path, found.default_name) == ("some_agents:Quick", "quick")
    assert found.settings == definition.AgentSettings(
        idle_timeout_s=2.0, turn_timeout_s=60.0, workspace_quota_bytes=1000
    )
    assert agent_code.describe("some_agents:Quick").digest == found.digest
    assert agent_code.describe("some_agents:echo").digest != found.digest
    assert agent_code.describe("some_agents:echo").default_name == "echo"
    sys.modules.pop("some_agents")
    (folder / "some_agents.py").write_text(MODULE + "# changed\n")
    for stale in (folder / "__pycache__").glob("*"):
        stale.unlink()
    assert agent_code.describe("some_agents:Quick").digest != found.digest


@pytest.mark.parametrize(
    ("import_path", "error", "words"),
    [
        ("some_agents", errors.InvalidField, "module:Class"),
        (":Quick", errors.InvalidField, "module:Class"),
        ("some_agents:", errors.InvalidField, "module:Class"),
        ("some_agents:Quick.x", errors.InvalidField, "module:Class"),
        ("nowhere:Quick", errors.AgentImportFailed, "No module named 'nowhere'"),
        ("some_agents:Missing", errors.AgentImportFailed, "Missing"),
        ("some_agents:not_a_class", errors.AgentImportFailed, "not a torpor.Agent"),
        ("pathlib:Path", errors.AgentImportFailed, "not a torpor.Agent"),
        ("raises:Any", errors.AgentImportFailed, "OSError: no disk"),
        ("exits:Any", errors.AgentImportFailed, "SystemExit: no"),
    ],
)
def test_what_cannot_be_loaded(
    folder: pathlib.Path, import_path: str, error: type[errors.TorporError], words: str
) -> None:
    """Each mistake is told as what it is, with the import's own words."""
    with pytest.raises(error, match=words) as refused:
        agent_code.load(import_path)
    assert type(refused.value) is error


def test_traceback_is_told_and_bounded(folder: pathlib.Path) -> None:
    """The last lines of the traceback go along, so that the cause can be found."""
    with pytest.raises(errors.AgentImportFailed) as refused:
        agent_code.load("raises:Any")
    lines = refused.value.message.splitlines()
    assert any("raise OSError" in line for line in lines)
    assert len(lines) <= agent_code.TRACEBACK_LINES_MAX + 1


def test_settings_that_cannot_be_read(folder: pathlib.Path) -> None:
    """A duration that is none is the deployer's mistake."""
    with pytest.raises(errors.InvalidField, match="soon"):
        agent_code.describe("some_agents:Odd")


@pytest.mark.parametrize(
    ("import_path", "kind"),
    [
        ("some_agents:Quick", protocol.AgentDescription),
        ("raises:Any", protocol.Refusal),
        ("exits:Any", protocol.Refusal),
    ],
)
def test_as_a_program(folder: pathlib.Path, import_path: str, kind: type) -> None:
    """The answer is one JSON value on stdout; what the module prints is not mixed with it."""
    ran = subprocess.run(
        [sys.executable, "-m", "torpor.actors.agent_code", import_path],
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=True,
    )
    answer = msgspec.json.decode(ran.stdout, type=protocol.AgentDescription | protocol.Refusal)
    assert type(answer) is kind
    if kind is protocol.AgentDescription:
        assert b"noise on import" in ran.stderr
