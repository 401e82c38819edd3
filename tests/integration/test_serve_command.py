"""`torpor serve` on a cluster and a store that are there already, and when they are not."""

import os
import pathlib
import signal
import subprocess
import sys

import msgspec
import ray
import yaml
from shared_cluster import SLOW_S, Cluster

from torpor import client
from torpor.testing.eventually import assert_eventually


def _serve(
    folder: pathlib.Path, settings: dict[str, object], *, ray_address: str
) -> subprocess.Popen[str]:
    (folder / "torpor.yaml").write_text(yaml.safe_dump(settings))
    with (folder / "serve.log").open("w") as log:
        return subprocess.Popen(
            [pathlib.Path(sys.executable).with_name("torpor"), "serve"],
            cwd=folder,
            env={**os.environ, "RAY_ADDRESS": ray_address},
            stderr=log,
            text=True,
        )


def _settings(cluster: Cluster, **changes: object) -> dict[str, object]:
    plain = msgspec.to_builtins(
        cluster.here.deployment, enc_hook=str, builtin_types=(str, int, float, bool)
    )
    return {**plain, **changes}


async def test_serve_takes_over_and_lets_go(
    cluster: Cluster, session: client.Session, tmp_path: pathlib.Path
) -> None:
    """It adopts what runs, brings a killed gateway back, and ends without ending anything."""
    await session.send("self.n = 1")
    address = cluster.addresses[0]
    serving = _serve(tmp_path, _settings(cluster), ray_address=cluster.here.cluster.address)
    try:
        ray.kill(cluster.gateway_actor("node-1"))

        async def answers() -> bool:
            assert serving.poll() is None, (tmp_path / "serve.log").read_text()
            async with client.connect(address, api_key=cluster.here.api_key) as caller:
                return (
                    await caller.sessions.handle(session.id).send("return str(self.n)")
                ).text == "1"

        await assert_eventually(answers, SLOW_S)

        async def ready() -> bool:
            return "ready on" in (tmp_path / "serve.log").read_text()

        # A session may answer before every node has been looked at.
        await assert_eventually(ready, SLOW_S)
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(SLOW_S) == 0, (tmp_path / "serve.log").read_text()
    finally:
        serving.kill()
        serving.wait()
    assert "Traceback" not in (tmp_path / "serve.log").read_text()
    assert (await session.send("return str(self.n)")).text == "1"
    await cluster.settled()
    assert cluster.running("node-1").gateway == address


def test_serve_without_a_store(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    """Without a store it says so, and starts nothing."""
    settings = _settings(cluster, store_url="redis://127.0.0.1:1/0")
    serving = _serve(tmp_path, settings, ray_address=cluster.here.cluster.address)
    assert serving.wait(SLOW_S) != 0
    said = (tmp_path / "serve.log").read_text()
    assert "127.0.0.1:1" in said
    assert "Traceback" not in said
