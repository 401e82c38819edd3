"""One deployment for all integration tests: three Ray nodes, each with gateway and node agent."""

import contextlib
import hashlib
import os
import pathlib
import socket
import sys
import unittest.mock
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

import torpor
from torpor import client, errors, ids, probes
from torpor.dev import local
from torpor.storage import records

FOLDER = pathlib.Path(__file__).parent
SUPPORT = FOLDER / "support"
sys.path.insert(0, str(SUPPORT))

from shared_cluster import OTHER_TENANT, Cluster, Gate  # noqa: E402 - found by the line above

#: The agents that tests make sessions of, registered for both tenants.
AGENTS = ("Puppet", "Restless", "Hurried", "Frugal")
NODES = 3
#: Read by Ray's control service at its start: a node that refuses connections is dead after 2 s
#: instead of 15; one that is merely slow keeps the usual time to answer.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "400",
}
#: Short, so that the loss of a node is noticed soon; a test machine's pauses are well below it.
LEASE_TTL_MS = 3_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder the mark, the shared event loop, and a fitting order."""
    ours = [item for item in items if item.path.is_relative_to(FOLDER)]
    for item in ours:
        item.add_marker(pytest.mark.cluster)
        if pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
    # Those that bring a deployment of their own come before the shared one takes memory.
    others = [item for item in items if item not in ours]
    items[:] = others + sorted(ours, key=lambda item: "cluster" in item.fixturenames)


@pytest.fixture(scope="session")
def _probes(tmp_path_factory: pytest.TempPathFactory) -> probes.Probes:
    """Where the deployment's processes record what they pass."""
    return probes.Probes(tmp_path_factory.mktemp("probes"))


@pytest.fixture(scope="session")
def _environment(_probes: probes.Probes) -> Iterator[None]:
    """What Ray's processes inherit."""
    # The test agents are modules like a user's own.
    path = os.pathsep.join(filter(None, (str(SUPPORT), os.environ.get("PYTHONPATH"))))
    inherited = {"PYTHONPATH": path, probes.VARIABLE: str(_probes.folder), **HEALTH_CHECKS}
    with unittest.mock.patch.dict(os.environ, inherited):
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster(
    _environment: None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    """The shared deployment. A test that kills a node adds that node first."""
    options = local.LocalOptions(
        folder=tmp_path_factory.mktemp("deployment"),
        nodes=NODES,
        port=_free_ports(NODES + 1),
        lease_ttl_ms=LEASE_TTL_MS,
    )
    async with contextlib.AsyncExitStack() as stack:
        here = await stack.enter_async_context(local.LocalDeployment(options))
        clients = [
            await stack.enter_async_context(torpor.connect(address, api_key=here.api_key))
            for address in here.gateways
        ]
        shared = Cluster(here, clients)
        stack.push_async_callback(shared.store.close)
        await shared.store.catalog.create_tenant(OTHER_TENANT, at_ms=0)
        for name in AGENTS:
            await clients[0].agents.register(f"session_agents:{name}")
        yield shared


@pytest_asyncio.fixture(loop_scope="session")
async def other_key(cluster: Cluster) -> str:
    """An API key of the other tenant, no operator's."""
    key = ids.api_key()
    await cluster.store.catalog.put_key(
        hashlib.sha256(key.encode()).hexdigest(),
        records.ApiKey(tenant=OTHER_TENANT, operator=False, label="test", created_ms=0),
    )
    return key


@pytest_asyncio.fixture(loop_scope="session")
async def other_client(cluster: Cluster, other_key: str) -> AsyncIterator[client.Client]:
    """A client of the other tenant at the first gateway."""
    async with torpor.connect(cluster.addresses[0], api_key=other_key) as connected:
        await connected.agents.register("session_agents:Puppet")
        yield connected


@pytest_asyncio.fixture(loop_scope="session")
async def session(cluster: Cluster) -> AsyncIterator[client.Session]:
    """A new session of the agent that does what messages say."""
    made = await cluster.client.sessions.create("puppet")
    yield made
    with contextlib.suppress(errors.TorporError):
        await made.delete()


@pytest.fixture(name="probes")
def armable_probes(_probes: probes.Probes) -> Iterator[probes.Probes]:
    """The probes of the shared deployment; nothing is left armed."""
    yield _probes
    for point in probes.Point:
        _probes.disarm(point)


@pytest.fixture
def gate(tmp_path: pathlib.Path) -> Gate:
    """A gate that turns can be held at."""
    return Gate(tmp_path / "gate")


def _free_ports(count: int) -> int:
    """Return a port such that it and those of the other gateways are free."""
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        ports = [first + i * local.PORT_STEP for i in range(count)]
        with contextlib.suppress(errors.FailedPrecondition, OverflowError):
            local.check_ports_free(ports)
            return first
    raise RuntimeError("no free ports")
