"""The only package that touches what Ray does not promise, with a way to live without each thing.

Held by `tests/integration/test_ray_compat.py`, which says what broke when Ray moves.
"""

from torpor.actors.ray_compat.cluster import (
    NAME_LABEL,
    LocalCluster,
    is_head,
    join,
    node_name,
    start_node,
)

__all__ = ["NAME_LABEL", "LocalCluster", "is_head", "join", "node_name", "start_node"]
