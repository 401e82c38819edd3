"""The Lua scripts: called by digest, sent in full to a server that does not have them."""

import functools
import hashlib
import importlib.resources
from collections.abc import Sequence
from typing import Any

from torpor import errors
from torpor.storage import redis_wire
from torpor.storage.record_codec import Argument


class Script:
    """One script of `storage/lua`."""

    def __init__(self, name: str) -> None:
        self._body = (
            importlib.resources.files("torpor.storage") / "lua" / f"{name}.lua"
        ).read_bytes()
        self._digest = hashlib.sha1(self._body, usedforsecurity=False).hexdigest()

    async def run(
        self,
        wire: redis_wire.Wire,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        *,
        then: Sequence[redis_wire.Command] = (),
        write: bool = True,
        lost: type[errors.Unavailable] = errors.StoreUnavailable,
    ) -> list[Any]:
        """Return the script's reply and those of the commands `then`, all in one round trip.

        What it wrote is durable then.

        Raises:
            lost: the answer did not come, and the script may have run.
            StoreUnavailable, StoreReadOnly
        """
        send = wire.write if write else wire.read
        tail = (len(keys), *keys, *arguments)
        try:
            return await send(("EVALSHA", self._digest, *tail), *then, lost=lost)
        except redis_wire.ScriptMissing:
            return await send(("EVAL", self._body, *tail), *then, lost=lost)


@functools.cache
def script(name: str) -> Script:
    """Return a script by the name of its file, read once."""
    return Script(name)
