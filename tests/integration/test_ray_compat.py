"""What torpor relies on in Ray: when a release of Ray changes it, this says what."""

import json
import os
import subprocess
import sys

import ray
from shared_cluster import Cluster

from torpor.actors import ray_compat
from torpor.testing.eventually import assert_eventually

#: Starting a driver imports Ray and connects.
DRIVER_TIMEOUT_S = 60.0

DRIVER = """
import os, sys
import ray

class Child:
    def pid(self):
        return os.getpid()

class Parent:
    def __init__(self):
        self.child = ray.remote(Child).options(num_cpus=0).remote()

    def pids(self):
        return os.getpid(), ray.get(self.child.pid.remote())

ray.init(address=sys.argv[1], namespace="compat", log_to_driver=False)
parent = ray.remote(Parent).options(
    name="parent", lifetime="detached", num_cpus=0, get_if_exists=True
).remote()
print(*ray.get(parent.pids.remote()))
"""


def _drive(cluster: Cluster) -> list[int]:
    """Run a driver in a process of its own, to its end; returns the actors' process ids."""
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER, cluster.here.cluster.address],
        capture_output=True,
        text=True,
        timeout=DRIVER_TIMEOUT_S,
        check=True,
    )
    return [int(pid) for pid in ran.stdout.split()]


def test_nodes_have_names_and_one_is_the_head(cluster: Cluster) -> None:
    """A node's label names it; exactly the first node is the head."""
    nodes = {ray_compat.node_name(node): node for node in ray.nodes() if node["Alive"]}
    assert {"node-1", "node-2", "node-3"} <= set(nodes)
    assert [name for name, node in sorted(nodes.items()) if ray_compat.is_head(node)] == ["node-1"]


def test_actors_go_where_the_label_says(cluster: Cluster) -> None:
    """A selector of Ray's own node id label puts an actor on that node, on each of them."""

    class Where:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    remote = ray.remote(Where)
    for node in [node["NodeID"] for node in ray.nodes() if node["Alive"]]:
        actor = remote.options(num_cpus=0, label_selector={"ray.io/node-id": node}).remote()
        assert ray.get(actor.node.remote()) == node
        ray.kill(actor)


async def test_detached_actor_and_its_child(cluster: Cluster) -> None:
    """A detached actor and its child outlive their driver, are found by name, and die together."""
    parent_pid, child_pid = _drive(cluster)
    assert _lives(parent_pid)
    assert _lives(child_pid)
    # Another driver finds the same ones, and so does this process, which is a third.
    assert _drive(cluster) == [parent_pid, child_pid]
    parent = ray.get_actor("parent", namespace="compat")
    assert ray.get(parent.pids.remote()) == (parent_pid, child_pid)
    ray.kill(parent)

    async def both_ended() -> bool:
        return not _lives(parent_pid) and not _lives(child_pid)

    await assert_eventually(both_ended)


async def test_killed_node_takes_its_processes(cluster: Cluster) -> None:
    """`kill_node` ends a node's raylet and workers; Ray says so, and the other nodes stay."""
    name = await cluster.add_node()
    node = cluster.node_id(name)

    class Where:
        def pid(self) -> int:
            return os.getpid()

    actor = ray.remote(Where).options(num_cpus=0, label_selector={"ray.io/node-id": node}).remote()
    pid = ray.get(actor.pid.remote())
    await cluster.lose(name)

    async def ended() -> bool:
        return not _lives(pid)

    await assert_eventually(ended)
    alive = {ray_compat.node_name(each) for each in ray.nodes() if each["Alive"]}
    assert alive == {"node-1", "node-2", "node-3"}


def test_settings_reach_rays_processes(cluster: Cluster) -> None:
    """What is set for Ray's processes at their start is set in its workers."""

    class Reader:
        def environment(self) -> str:
            return json.dumps(dict(os.environ))

        def niceness(self) -> int:
            return os.nice(0)

    actor = ray.remote(Reader).options(num_cpus=0).remote()
    environment = json.loads(ray.get(actor.environment.remote()))
    for name, value in ray_compat.cluster._NODE_ENVIRONMENT.items():
        assert environment[name] == value
    assert ray.get(actor.niceness.remote()) == os.nice(0)
    ray.kill(actor)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - one line of /proc
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
