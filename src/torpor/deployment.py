"""What one deployment is made of, as a frozen value that every process is handed.

`torpor.config` makes it from files, environment and flags; nothing else reads those.
"""

import enum
import pathlib

import msgspec


class Durability(enum.StrEnum):
    """What a reply means."""

    #: The store has it in memory.
    MEMORY = "memory"
    #: The store's disk has it.
    FSYNC = "fsync"
    #: The disks of the store and of one replica have it.
    REPLICATED = "replicated"


class LoadScope(enum.StrEnum):
    """Whose CPU and memory a node agent publishes."""

    #: The whole machine's: one Ray node a machine.
    MACHINE = "machine"
    #: The processes of its own Ray node: several Ray nodes share the machine, as in `torpor dev`.
    NODE = "node"


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a deployment."""

    #: `redis://[user:password@]host:port/db`, or `unix://`.
    store_url: str
    durability: Durability = Durability.FSYNC
    #: The folder that all nodes share (local or NFS): blobs and session logs.
    storage: pathlib.Path
    #: Node-local scratch: workspaces of resident sessions. Each node makes its own folder below it.
    scratch: pathlib.Path
    #: The file with the keys that sign checkpoints, readable by its owner alone.
    signing_key_file: pathlib.Path
    #: Gateways listen here.
    gateway_host: str = "127.0.0.1"
    gateway_port: int = 7420
    #: Where several nodes share a machine, each further gateway listens this much higher.
    gateway_port_step: int = 0
    #: Session processes of one node.
    sessions_per_node_max: int = 200
    #: Session processes that one node starts at the same time.
    activations_per_node_max: int = 4
    #: Calls in flight in one gateway.
    calls_in_flight_max: int = 1_000
    #: Whether gateways reach sessions and node agents over sockets of their own, and over Ray only
    #: where those fail.
    lanes: bool = True
    load_scope: LoadScope = LoadScope.MACHINE
    #: Above this share of used memory the node evicts idle sessions, down to the lower mark.
    memory_high: float = 0.80
    memory_low: float = 0.75
    #: How long a node agent may be silent before its sessions may be taken over. Longer means
    #: slower take-over, never less safety; it must exceed ordinary pauses.
    lease_ttl_ms: int = 10_000
    #: Whether Ray's head node hosts sessions too.
    head_hosts_sessions: bool = False
