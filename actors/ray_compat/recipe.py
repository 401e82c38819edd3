"""What a forked worker is made from, as it travels in Ray's runtime environment."""

from typing import Any

import msgspec

from torpor.actors.ray_compat import worker_starter


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What a fork server is made for, and what it imports."""

    tenant: str
    agent: str
    version: int
    #: `module:Class`.
    import_path: str
    #: Where modules are looked for, as in the process that asked.
    sys_path: tuple[str, ...]


def forked(recipe: Recipe) -> dict[str, Any]:
    """Return the runtime environment of an actor whose process is to be forked, if it can be."""
    return {"env_vars": {worker_starter.RECIPE: msgspec.json.encode(recipe).decode()}}
