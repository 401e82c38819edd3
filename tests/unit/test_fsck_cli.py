"""`torpor fsck`: options, what it prints, how it exits, and how it finds a deployment."""

import asyncio
import fcntl
import json
import os
import pathlib
from collections.abc import Awaitable, Callable

import pytest
from typer import testing

from torpor import config, deployment, errors
from torpor.actors import ray_compat
from torpor.cli import failures, main, options
from torpor.dev import local
from torpor.storage import keyring, keys, local_blobs, records, redis_store, storage_proof
from torpor.testing import store_samples, valkey

KEY = records.SessionKey("acme", "chat")


@pytest.fixture
def place(
    server: valkey.Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    """The working folder: a deployment with one session, and its settings."""
    for name in list(os.environ):
        if name.startswith("TORPOR_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert server.call("FLUSHALL") == "+OK"
    keyring.create(tmp_path / "keys")
    _write_settings(server, tmp_path / config.FILE_NAME)
    storage = local_blobs.LocalBlobStore(tmp_path / "storage")
    _with_store(server, lambda store: storage_proof.establish(store.catalog, storage))
    _with_store(server, lambda store: store.catalog.create_tenant("acme", at_ms=0))
    _with_store(server, lambda store: store.sessions.create(store_samples.new(KEY)))
    return tmp_path


def _write_settings(server: valkey.Server, path: pathlib.Path) -> None:
    folder = pathlib.Path.cwd()
    path.write_text(
        f"store_url: {server.url}\nstorage: {folder}/storage\nscratch: {folder}/scratch\n"
        f"signing_key_file: {folder}/keys\n"
    )


def _with_store(
    server: valkey.Server, use: Callable[[redis_store.RedisStore], Awaitable[object]]
) -> None:
    async def run() -> None:
        store = redis_store.open(
            store_samples.deployment_at(server.url, deployment.Durability.MEMORY)
        )
        await use(store)
        await store.close()

    asyncio.run(run())


def _unlist(server: valkey.Server) -> None:
    assert server.call("ZREM", keys.sessions("acme"), "chat") == ":1"


def torpor(*arguments: str) -> testing.Result:
    """Run a command in this process."""
    return testing.CliRunner().invoke(main.app, arguments)


def test_findings_are_lines_and_an_exit_code(server: valkey.Server, place: pathlib.Path) -> None:
    """Clean or mended is 0, what remains is 1; each finding is told with what it is about."""
    clean = torpor("fsck")
    assert (clean.exit_code, clean.stderr) == (failures.OK, "")
    assert clean.stdout == "tenants: 1, sessions: 1, blobs: 0; all is well\n"
    _unlist(server)
    found = torpor("fsck")
    assert found.exit_code == failures.ERROR
    first, second, last = found.stdout.splitlines()
    assert first.split() == ["warning", "index-missing", "acme/chat"]
    assert "use --repair" in second
    assert last.endswith("1 warning; 1 remain")
    mended = torpor("fsck", "--repair")
    assert mended.exit_code == failures.OK
    assert mended.stdout.endswith("; 1 warning; 1 mended\n")
    assert torpor("fsck").stdout == clean.stdout


def test_json_is_one_line_a_finding(server: valkey.Server, place: pathlib.Path) -> None:
    """Scripts read findings as they come, and a summary at the end."""
    _unlist(server)
    for arguments in (["--json", "fsck"], ["fsck", "--json", "--tenant", "acme"]):
        result = torpor(*arguments)
        assert result.exit_code == failures.ERROR
        found, last = [json.loads(line) for line in result.stdout.splitlines()]
        assert found["finding"]["what"] == "index-missing"
        assert (found["finding"]["tenant"], found["finding"]["session"]) == KEY.__reduce__()[1]
        assert (last["summary"]["sessions"], last["summary"]["remaining"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--session", "chat"], failures.USAGE, "--session needs --tenant"),
        (["--tenant", "a/b"], failures.USAGE, "not a valid name"),
        (["--orphans-older-than", "soon"], failures.USAGE, "not a duration"),
        (["--tenant", "nobody"], failures.NOT_FOUND, "torpor tenants ls"),
        (["--tenant", "acme", "--session", "none"], failures.NOT_FOUND, "There is no session"),
        (["--set", "storage=/nowhere"], failures.UNAVAILABLE, "Mount the right folder"),
        (["--set", "store_url=redis://127.0.0.1:1/0"], failures.UNAVAILABLE, "cannot connect"),
    ],
)
def test_what_cannot_be_checked_says_why(
    place: pathlib.Path, arguments: list[str], code: int, said: str
) -> None:
    """Wrong options, names and places are told apart by their exit codes."""
    result = torpor("fsck", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr


def test_a_running_dev_is_found_by_its_folder(server: valkey.Server, place: pathlib.Path) -> None:
    """Without settings, those that `torpor dev` left count, as long as it runs."""
    (place / config.FILE_NAME).unlink()
    for folder, arguments in ((".torpor", []), ("other", ["--data-dir", "other"])):
        pathlib.Path(folder).mkdir()
        _write_settings(server, pathlib.Path(folder) / config.FILE_NAME)
        with (place / folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert torpor("fsck", *arguments).exit_code == failures.OK
        dead = torpor("fsck", *arguments)
        assert dead.exit_code == failures.REFUSED
        assert "start it" in dead.stderr


def test_a_running_dev_comes_before_a_file_that_lies_here(
    server: valkey.Server, place: pathlib.Path
) -> None:
    """In a copy of the project lies a sample of settings; the deployment that runs is meant."""
    (place / config.FILE_NAME).write_text("store_url: redis://127.0.0.1:1/0\n")
    (place / ".torpor").mkdir()
    _write_settings(server, place / ".torpor" / config.FILE_NAME)
    with (place / ".torpor" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert torpor("fsck").exit_code == failures.OK
        assert torpor("fsck", "--data-dir", ".torpor").exit_code == failures.OK
    assert torpor("fsck").exit_code != failures.OK


async def test_dev_leaves_its_settings_while_it_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `torpor dev` leaves is what it runs on, and is gone when it ends."""
    found: list[deployment.Deployment] = []
    monkeypatch.chdir(tmp_path)

    def no_ray(*_: object, **__: object) -> None:
        found.append(options.settings_here(None, [], tmp_path / "dev").deployment)
        raise errors.FailedPrecondition("far enough")

    monkeypatch.setattr(ray_compat, "LocalCluster", no_ray)
    here = local.LocalDeployment(local.LocalOptions(folder=tmp_path / "dev", port=0))
    with pytest.raises(errors.FailedPrecondition, match="far enough"):
        await here.__aenter__()
    assert found == [here.deployment]
    assert not (tmp_path / "dev" / local.SETTINGS).exists()
    with pytest.raises(errors.FailedPrecondition, match="start it"):
        options.settings_here(None, [], tmp_path / "dev")
