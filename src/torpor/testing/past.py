"""A store that goes back in time."""

import redis

from torpor import messages
from torpor.actors import changes, ownership, turn_context
from torpor.testing import valkey


class Past:
    """Takes everything that the store holds back to an earlier moment."""

    def __init__(self, server: valkey.Server) -> None:
        self._redis = redis.Redis(port=server.port)
        self._dumps = {name: self._redis.dump(name) or b"" for name in self._redis.scan_iter()}

    def bring_back(self) -> None:
        """Let the store hold what it held when this was made."""
        self._redis.flushall()
        for name, dump in self._dumps.items():
            self._redis.restore(name, 0, dump)


def turn(request_id: str) -> changes.Change:
    """Return a turn that can be told by its request."""
    draft = turn_context.Draft(type=messages.AGENT_MESSAGE, data={"text": request_id})
    return changes.Change(
        drafts=(draft,), state=request_id.encode(), request_id=request_id, body_digest="d"
    )


async def events(owned: ownership.Ownership) -> list[messages.Event]:
    """Return the session's history."""
    return await owned.history.read(0, 100)
