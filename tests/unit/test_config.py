"""Settings: precedence, origins, and what is refused."""

import os
import pathlib
import subprocess
import sys

import msgspec
import pytest

from torpor import config, deployment, errors

FILE = """\
store_url: redis://file:6379/0
storage: data
scratch: /scratch
signing_key_file: ~/keys
gateway_port: 1
calls_in_flight_max: 10
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A working directory with a settings file, and no setting in the environment."""
    for name in list(os.environ):
        if name.startswith(config.PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torpor.yaml").write_text(FILE)
    return tmp_path


def test_precedence_and_origins(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    """Each key comes from the strongest source that names it, and is said to."""
    monkeypatch.setenv("TORPOR_GATEWAY_PORT", "2")
    monkeypatch.setenv("TORPOR_CALLS_IN_FLIGHT_MAX", "20")
    loaded = config.load({"calls_in_flight_max": 30})
    settings = loaded.deployment
    assert settings.store_url == "redis://file:6379/0"
    assert (settings.gateway_port, settings.calls_in_flight_max) == (2, 30)
    assert settings.durability is deployment.Durability.FSYNC
    origins = {name: (value.source, value.where) for name, value in loaded.origins.items()}
    assert origins["store_url"] == ("file", str(folder / "torpor.yaml"))
    assert origins["gateway_port"] == ("environment", "TORPOR_GATEWAY_PORT")
    assert origins["calls_in_flight_max"] == ("flag", "--set calls_in_flight_max")
    assert origins["gateway_host"] == ("default", "")
    assert list(origins) == [field.name for field in msgspec.structs.fields(settings)]


def test_paths_belong_to_the_file_that_names_them(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths start at the file's folder or the working directory; `~` is expanded."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("TORPOR_CONFIG", str(folder / "torpor.yaml"))
    settings = config.load({"scratch": "here"}).deployment
    assert settings.storage == folder / "data"
    assert settings.scratch == elsewhere / "here"
    assert settings.signing_key_file == pathlib.Path.home() / "keys"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("stroage: /x", "unknown key 'stroage' in .*did you mean storage"),
        ("zzz: 1", "unknown key 'zzz'.*the keys are store_url"),
        ("gateway_port: many", "gateway_port in .*torpor.yaml: .*integer"),
        ("gateway_port: 70000", "gateway_port in .*less than or equal to 65535"),
        ("durability: later", "durability in .*memory"),
        ("store_url: http://x", "store_url"),
        ("memory_low: 0.9", "memory_low .* must be below memory_high"),
        ("- a list", "cannot read|must be"),
    ],
)
def test_mistakes_are_named(folder: pathlib.Path, line: str, said: str) -> None:
    """A wrong key or value is refused with the key, the place and what is allowed."""
    (folder / "torpor.yaml").write_text(f"{FILE}{line}\n")
    with pytest.raises(errors.InvalidField, match=said):
        config.load()


def test_secrets_stay_out_of_messages(folder: pathlib.Path) -> None:
    """A URL that is refused is not shown: it may hold a password."""
    (folder / "torpor.yaml").write_text(FILE.replace("redis://", "redid://u:hunter2@"))
    with pytest.raises(errors.InvalidField) as caught:
        config.load()
    assert "hunter2" not in str(caught.value)


def test_missing_and_misspelt(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    """A required key that nobody sets, a misspelt variable and a named file that is not there."""
    with pytest.raises(errors.InvalidField, match="no settings file"):
        config.load(file=folder / "other.yaml")
    (folder / "torpor.yaml").write_text("storage: data\n")
    with pytest.raises(errors.InvalidField, match=r"store_url is not set.*TORPOR_STORE_URL"):
        config.load()
    monkeypatch.setenv("TORPOR_ADDRESS", "somebody else's")
    monkeypatch.setenv("TORPOR_STORE_ULR", "redis://x")
    with pytest.raises(errors.InvalidField, match="did you mean TORPOR_STORE_URL"):
        config.load()


def test_the_example_is_valid() -> None:
    """The file that comes with the source says what the defaults are, and is accepted."""
    example = pathlib.Path(__file__).parents[2] / "torpor.yaml"
    loaded = config.load(file=example)
    defaults = {
        field.name: field.default
        for field in msgspec.structs.fields(deployment.Deployment)
        if not field.required and field.name != "gateway_host"
    }
    assert {name: loaded.origins[name].value for name in defaults} == defaults
    assert {value.source for value in loaded.origins.values()} == {"file"}


def test_a_deployment_needs_no_pydantic() -> None:
    """Processes that are handed settings do not load what reads them."""
    program = "import sys, torpor.deployment; print('pydantic' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "False"
