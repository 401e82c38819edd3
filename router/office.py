"""Ending calls to nodes that are out of office.

A call into a node that lost its power hangs until Ray notices, for up to a minute. The node's lease
lapses much sooner, and then its sessions may be claimed elsewhere: whoever waits goes on there.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection

from torpor import errors

#: A node in one life: its id and incarnation.
Term = tuple[str, str]


class Office:
    """The calls under way into each node, ended when its lease is gone."""

    def __init__(self) -> None:
        self._waiting: dict[Term, set[asyncio.Timeout]] = {}

    @contextlib.asynccontextmanager
    async def during(self, node: str, incarnation: str) -> AsyncIterator[None]:
        """Run the body while the node holds its lease.

        Raises:
            OwnerUnreachable: the lease was seen to be gone before the body was done.
        """
        term = (node, incarnation)
        waiting = self._waiting.setdefault(term, set())
        try:
            async with asyncio.timeout(None) as limit:
                waiting.add(limit)
                try:
                    yield
                finally:
                    waiting.discard(limit)
                    if not waiting and self._waiting.get(term) is waiting:
                        del self._waiting[term]
        except TimeoutError:
            raise errors.OwnerUnreachable("the node's lease has lapsed", node=node) from None

    def note(self, standing: Collection[Term]) -> None:
        """End the calls into all nodes but those whose lease stands."""
        now_s = asyncio.get_running_loop().time()
        for term in self._waiting.keys() - set(standing):
            for limit in self._waiting.pop(term):
                limit.reschedule(now_s)
