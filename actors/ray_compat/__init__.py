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
from torpor.actors.ray_compat.recipe import Recipe, forked
from torpor.actors.ray_compat.worker_starter import FORKED_BY, NOT_FORKED

__all__ = [
    "FORKED_BY",
    "NAME_LABEL",
    "NOT_FORKED",
    "LocalCluster",
    "Recipe",
    "forked",
    "is_head",
    "join",
    "node_name",
    "start_node",
]
