"""What `torpor doctor` finds, and what it advises."""

import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator

import pytest
from typer import testing

from torpor import deployment, doctor, errors
from torpor.cli import main
from torpor.client import loop
from torpor.storage import keyring
from torpor.testing import valkey
from torpor.testing.scripted_gateway import ScriptedGateway
from torpor.v1 import admin_pb2

OK, WARN, FAIL = doctor.Verdict.OK, doctor.Verdict.WARN, doctor.Verdict.FAIL


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkey.Server]:
    """A real store that reaches `fsync`."""
    with valkey.Server(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def settings(server: valkey.Server, tmp_path: pathlib.Path) -> deployment.Deployment:
    """A deployment on that store, with all that it needs."""
    for name in ("storage", "scratch"):
        (tmp_path / name).mkdir()
    keyring.create(tmp_path / "keys")
    return deployment.Deployment(
        store_url=server.url,
        storage=tmp_path / "storage",
        scratch=tmp_path / "scratch",
        signing_key_file=tmp_path / "keys",
        gateway_port=_free_port(),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("finding", "verdict", "said"),
    [
        (doctor.python_version((3, 11, 0)), OK, ""),
        (doctor.python_version((3, 10, 9)), FAIL, "3.11"),
        (doctor.ray_version("2.60.1"), OK, ""),
        (doctor.ray_version("2.6.0"), FAIL, "2.60"),
        (doctor.ray_version(None), FAIL, "install"),
        (doctor.bytecode({}), OK, ""),
        (doctor.bytecode({"PYTHONDONTWRITEBYTECODE": "1"}), WARN, "unset"),
        (doctor.open_files(65_536), OK, ""),
        (doctor.open_files(-1), OK, ""),
        (doctor.open_files(1_024), WARN, "ulimit"),
    ],
)
def test_the_machine(finding: doctor.Finding, verdict: doctor.Verdict, said: str) -> None:
    """Each fact is judged, and what is not well comes with a remedy."""
    assert finding.verdict is verdict
    assert said in finding.remedy
    assert bool(finding.remedy) == (verdict is not OK)


def test_a_sound_deployment(settings: deployment.Deployment) -> None:
    """With everything in place nothing fails, and nothing is left behind."""
    findings = list(doctor.place(settings))
    assert not doctor.failed(findings), findings
    assert os.listdir(settings.storage) == os.listdir(settings.scratch) == []  # noqa: PTH208


async def test_a_store_that_is_away(settings: deployment.Deployment) -> None:
    """A store that does not answer fails the check and is told from one below its level."""
    away = deployment.Deployment(
        store_url=f"redis://127.0.0.1:{_free_port()}/0",
        storage=settings.storage,
        scratch=settings.scratch,
        signing_key_file=settings.signing_key_file,
    )
    finding = await doctor.store(away)
    assert (finding.verdict, finding.name) == (FAIL, "store")
    assert "store_url" in finding.remedy


async def test_a_store_below_its_level(
    settings: deployment.Deployment, server: valkey.Server
) -> None:
    """A store without a replica does not reach `replicated`; the remedy says so."""
    below = deployment.Deployment(
        store_url=server.url,
        durability=deployment.Durability.REPLICATED,
        storage=settings.storage,
        scratch=settings.scratch,
        signing_key_file=settings.signing_key_file,
    )
    finding = await doctor.store(below)
    assert finding.verdict is FAIL
    assert "replica" in finding.remedy


def test_folders(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is missing, is no folder, overwrites, cannot link, or is nearly full."""
    missing = doctor.folder("storage", tmp_path / "none", shared=True)
    assert (missing.verdict, "mkdir" in missing.remedy) == (FAIL, True)
    (tmp_path / "file").touch()
    assert doctor.folder("scratch", tmp_path / "file", shared=False).verdict is FAIL

    monkeypatch.setattr(doctor, "FREE_BYTES_MIN", 1 << 60)
    assert doctor.folder("scratch", tmp_path, shared=False).verdict is WARN
    monkeypatch.setattr(pathlib.Path, "hardlink_to", lambda *_: None)
    overwrites = doctor.folder("storage", tmp_path, shared=True)
    assert (overwrites.verdict, "overwrote" in overwrites.detail) == (FAIL, True)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(pathlib.Path, "hardlink_to", refuse)
    assert "cannot be linked" in doctor.folder("storage", tmp_path, shared=True).detail
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_signing_key(tmp_path: pathlib.Path) -> None:
    """The key must be there and its owner's alone."""
    path = tmp_path / "keys"
    missing = doctor.signing_key(path)
    assert (missing.verdict, missing.detail.startswith("cannot read")) == (FAIL, True)
    assert missing.remedy.startswith("name the right file")
    for broken in (b"", b"no key\n"):
        path.write_bytes(broken)
        path.chmod(0o600)
        assert doctor.signing_key(path).remedy, broken
    path.unlink()
    keyring.create(path)
    assert doctor.signing_key(path).verdict is OK
    path.chmod(0o644)
    readable = doctor.signing_key(path)
    assert (readable.verdict, "chmod 600" in readable.remedy) == (FAIL, True)


def test_gateway_port() -> None:
    """A port is free, a gateway of ours answers there, or somebody else has it."""
    port = _free_port()
    assert "free" in doctor.gateway_port("127.0.0.1", port).detail
    with loop.background_loop() as background:
        gateway = background.run(_start())
        port = int(gateway.address.rpartition(":")[2])
        for answer in (admin_pb2.ListNodesResponse(), errors.ApiKeyMissing()):
            gateway.script["ListNodes"] = [answer]
            found = doctor.gateway_port("127.0.0.1", port)
            assert (found.verdict, "answers" in found.detail) == (OK, True)
        gateway.script["ListNodes"] = [errors.StoreUnavailable()]
        assert doctor.gateway_port("127.0.0.1", port).verdict is OK
        background.run(gateway.stop())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        found = doctor.gateway_port("127.0.0.1", taken)
    assert (found.verdict, str(taken) in found.remedy) == (FAIL, True)


async def _start() -> ScriptedGateway:
    return await ScriptedGateway().start()


def test_the_command(
    settings: deployment.Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """The command exits with 1 if something fails, and lists every check with its remedy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORPOR_CONFIG", raising=False)
    without = testing.CliRunner().invoke(main.app, ["doctor"])
    assert without.exit_code == 1
    assert "store_url is not set" in without.stdout
    (tmp_path / ".torpor").mkdir()
    (tmp_path / ".torpor" / "lock").touch()
    ended = testing.CliRunner().invoke(main.app, ["doctor"])
    assert "does not run" in ended.stdout
    assert "store_url" not in ended.stdout
    (tmp_path / "torpor.yaml").write_text(
        f"store_url: {settings.store_url}\nstorage: storage\nscratch: scratch\n"
        f"signing_key_file: keys\ngateway_port: {settings.gateway_port}\n"
    )
    still = testing.CliRunner().invoke(main.app, ["doctor"])
    assert "does not run" in still.stdout, "a sample of settings is no answer to its user"
    sound = testing.CliRunner().invoke(main.app, ["doctor", "--json", "--config", "torpor.yaml"])
    findings = {found["name"]: found["detail"] for found in json.loads(sound.stdout)}
    assert sound.exit_code == 0, findings
    assert {"python", "ray", "bytecode", "store", "storage", "signing key"} <= set(findings)
    assert pathlib.Path(findings["settings"]).resolve() == tmp_path / "torpor.yaml"


def test_the_command_beside_torpor_dev(
    settings: deployment.Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """The deployment that runs here comes before a file that lies here, and it is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORPOR_CONFIG", raising=False)
    (tmp_path / "torpor.yaml").write_text("store_url: redis://nowhere/0\n")
    (tmp_path / ".torpor").mkdir()
    (tmp_path / ".torpor" / "torpor.yaml").write_text(
        f"store_url: {settings.store_url}\nstorage: ../storage\nscratch: ../scratch\n"
        f"signing_key_file: ../keys\ngateway_port: {settings.gateway_port}\n"
    )
    with (tmp_path / ".torpor" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = testing.CliRunner().invoke(main.app, ["doctor", "--json"])
    details = {finding["name"]: finding["detail"] for finding in json.loads(found.stdout)}
    assert found.exit_code == 0, details
    assert details["settings"] == str(tmp_path / ".torpor" / "torpor.yaml")


def test_tenants_and_keys(
    settings: deployment.Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Tenants and keys are made on the store that the settings name; a key works until revoked."""
    monkeypatch.chdir(tmp_path)
    place = [
        *("--set", f"store_url={settings.store_url}", "--set", "storage=storage"),
        *("--set", "scratch=scratch", "--set", "signing_key_file=keys"),
    ]

    def torpor(*arguments: str) -> testing.Result:
        return testing.CliRunner().invoke(main.app, [*arguments, *place])

    assert torpor("keys", "create", "acme").exit_code == 3, "the tenant is not known yet"
    assert torpor("tenants", "create", "acme").exit_code == 0
    assert torpor("tenants", "create", "Not a name").exit_code == 2
    assert torpor("tenants", "ls").stdout == "acme\n"
    key = torpor("keys", "create", "acme", "--operator").stdout.strip()
    assert key.startswith("tp_")
    assert len(key) == len("tp_") + 32
    assert torpor("keys", "revoke", key).exit_code == 0
    assert torpor("keys", "revoke", key).exit_code == 3
