"""Ray nodes on this machine, and what Ray says of nodes."""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import psutil
import ray
from ray import cluster_utils
from ray._private import ray_constants

from torpor import errors
from torpor.actors.ray_compat import worker_starter

#: Read by Ray's processes at their start; set before any of them is started here.
_NODE_ENVIRONMENT = {
    # Sessions are the payload, not background work.
    "RAY_worker_niceness": "0",
    # Dead session actors are of no interest, and the control service keeps 100,000 by default.
    "RAY_maximum_gcs_destroyed_actor_cached_count": "2000",
    "RAY_maximum_gcs_dead_worker_cached_count": "2000",
    "RAY_task_events_max_num_task_in_gcs": "10000",
    "RAY_metric_cardinality_level": "low",
    "RAY_USAGE_STATS_ENABLED": "0",
}

#: The node label that carries a node's name for people.
NAME_LABEL = "torpor-name"
#: A local node's object store: torpor passes small messages only.
OBJECT_STORE_BYTES = 80 << 20
#: A head that is there accepts a connection well within this.
PROBE_TIMEOUT_S = 5.0


def start_node(arguments: Sequence[str]) -> NoReturn:
    """Run `ray start` with these arguments, so that the node's workers can be forked."""
    # Brings much that only this command needs.
    from ray.scripts import scripts

    _prepare()
    scripts.cli.main(["start", *arguments], prog_name="torpor node")
    sys.exit()  # for the type checker: the line above ends the process


def _prepare() -> None:
    """Set what the Ray processes that this one starts are to have."""
    for name, value in _NODE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Every process that Ray starts should find compiled modules, and leave some if there are none.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Where the private constant has moved, Ray's own starter remains, and every worker imports
    # anew.
    if hasattr(ray_constants, "SETUP_WORKER_FILENAME"):
        # An absolute path, so that joining it to Ray's folder leaves it as it is.
        ray_constants.SETUP_WORKER_FILENAME = worker_starter.__file__


class LocalCluster:
    """Several Ray nodes on this machine, for `torpor dev` and tests.

    `ray.cluster_utils.Cluster` is a developer's API. Without it: `ray start` by hand, once a node.
    """

    def __init__(self, nodes: int, *, cpus_per_node: float = 1.0, dashboard: bool = False) -> None:
        """Start `nodes` raylets named node-1…; the first is the head. Takes 5 to 20 s."""
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        _prepare()
        # Told of addresses that it overwrites and of nodes that end, which is what happens here.
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._nodes: dict[str, Any] = {}
        self._cpus = cpus_per_node
        self._cluster = cluster_utils.Cluster()
        for number in range(1, nodes + 1):
            extra = {"include_dashboard": dashboard} if number == 1 else {}
            self._add(f"node-{number}", **extra)
        self.address = str(self._cluster.address)
        #: Ray's dashboard, `host:port`; empty without one.
        head: Any = self._cluster.head_node
        self.dashboard = str(head.webui_url or "") if dashboard else ""

    def connect(self) -> None:
        """Make this process a driver of the cluster."""
        join(self.address)

    def add(self, name: str) -> None:
        """Start one more node."""
        self._add(name)

    def kill_node(self, name: str) -> None:
        """End a node and all its processes at once, as a power failure would; not the head."""
        node = self._nodes.pop(name)
        # Its sessions would live on for up to a second, which no power failure grants.
        for process in _family(node.all_processes["raylet"][0].process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        """Disconnect and end all nodes."""
        ray.shutdown()
        self._cluster.shutdown()

    def _add(self, name: str, **extra: Any) -> None:
        self._nodes[name] = self._cluster.add_node(
            num_cpus=self._cpus,
            labels={NAME_LABEL: name},
            object_store_memory=OBJECT_STORE_BYTES,
            **extra,
        )


def _family(raylet: int) -> list[psutil.Process]:
    """Return a raylet's processes: those below it, and those forked for it."""
    family = [psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RAY_RAYLET_PID") == str(raylet):
                family.append(process)
    return family


def join(address: str) -> None:
    """Make this process a quiet driver of a cluster.

    Ray prints every worker's death to its drivers; here processes end all the time, on purpose and
    by accident, and what it means for sessions is said by torpor's own log. Where the private
    function has moved, Ray prints.

    Raises:
        FailedPrecondition: no cluster at `address` (`auto`: RAY_ADDRESS, or one on this machine).
    """
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    try:
        if named.count(":") == 1:
            # Ray itself would try for a minute before it says that nobody is there.
            host, _, port = named.partition(":")
            socket.create_connection((host, int(port)), PROBE_TIMEOUT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise errors.FailedPrecondition(
            f"no Ray cluster answers{f' at {named}' if named else ''}: {error}; start one with "
            "`torpor node start --head`, or set RAY_ADDRESS to its head's address"
        ) from None
    if hasattr(ray._private.worker, "print_to_stdstream"):
        ray._private.worker.print_to_stdstream = lambda *_, **__: None


def node_name(node: dict[str, Any]) -> str:
    """Return a name for people of an entry of `ray.nodes()`: its label, or its host's name."""
    labels = node.get("Labels") or {}
    return str(labels.get(NAME_LABEL) or node.get("NodeManagerHostname") or node["NodeID"][:8])


def is_head(node: dict[str, Any]) -> bool:
    """Whether an entry of `ray.nodes()` is the head node."""
    return "node:__internal_head__" in (node.get("Resources") or {})
