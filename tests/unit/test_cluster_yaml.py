"""The example deployment is one that Ray and torpor accept."""

import json
import pathlib
import shlex
import subprocess
from importlib import resources
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from torpor import config, deployment

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """cluster.yaml, parsed."""
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return parsed


def _commands(cluster: dict[str, Any]) -> list[str]:
    kinds = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return [command for kind in kinds for command in cluster[kind]]


def _start(cluster: dict[str, Any], role: str) -> list[str]:
    commands = cluster[f"{role}_start_ray_commands"]
    (start,) = [command for command in commands if "node start" in command]
    return shlex.split(start)


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    """It fits the schema that `ray up` validates against, which knows no keys but Ray's."""
    schema = json.loads((resources.files("ray") / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "torpor": {}}, schema)


def test_commands_are_shell(cluster: dict[str, Any]) -> None:
    """Bash can parse every command, the folded and the literal ones alike."""
    for command in _commands(cluster):
        subprocess.run(["bash", "-n", "-c", command], check=True, capture_output=True)


def test_head_hosts_no_sessions_and_starts_torpor_last(cluster: dict[str, Any]) -> None:
    """The head offers no CPU, launches the workers, and runs the control plane after Ray."""
    start = _start(cluster, "head")
    assert "--num-cpus=0" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "torpor serve --config /etc/torpor/torpor.yaml" in cluster["head_start_ray_commands"][-1]


def test_every_node_gets_the_flags_and_the_token(cluster: dict[str, Any]) -> None:
    """Head and workers load one file of flags, token authentication among them."""
    (flags,) = [command for command in cluster["setup_commands"] if "ray.env" in command]
    assert "export RAY_AUTH_MODE=token" in flags
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    for role in ("head", "worker"):
        assert _start(cluster, role)[:3] == ["source", "~/torpor/ray.env", "&&"]


def test_torpor_yaml_shows_every_setting() -> None:
    """torpor.yaml is accepted, has all settings, and shows the defaults where there are any."""
    loaded = config.load(file=ROOT / "torpor.yaml")
    differing = set()
    for field in msgspec.structs.fields(deployment.Deployment):
        assert loaded.origins[field.name].source == "file", field.name
        value = getattr(loaded.deployment, field.name)
        if not field.required and value != field.default:
            differing.add(field.name)
    assert differing == {"gateway_host"}, "by default a gateway is reached from its own node only"
