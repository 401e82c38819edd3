"""Whether the owner that a head names is still in office."""

import enum
import random

from torpor import clock, errors
from torpor.actors import calls
from torpor.router import deadline
from torpor.storage import records, store

#: How often a lease that should lapse is looked at: a small part of its term.
LEASE_POLL_S = 0.5
#: A node agent that lives answers within this, also while it makes sure that a process is dead.
BURY_TIMEOUT_S = 10.0


class Standing(enum.Enum):
    """What was found out about an owner."""

    #: It lives, or nothing speaks against it.
    IN_OFFICE = enum.auto()
    #: Its node's lease is gone: it may be replaced by a claim on what was observed.
    LAPSED = enum.auto()
    #: Its process is dead and the head was cleared: read it again.
    VACATED = enum.auto()


class Inquiry:
    """Asks leases and node agents about owners."""

    def __init__(
        self, nodes: store.Nodes, reach: calls.Calls, time: clock.Clock, rng: random.Random
    ) -> None:
        self._nodes = nodes
        self._calls = reach
        self._clock = time
        self._rng = rng

    async def settle(
        self, head: records.Head, *, suspect_epoch: int, until: deadline.Deadline
    ) -> Standing:
        """Return the standing of the head's owner, which must be set.

        `suspect_epoch` is the epoch of an owner that did not answer somebody. If that is the head's
        and its node's agent does not answer either, this waits for the lease to lapse.

        Raises:
            OwnerUnreachable: owner and node agent are silent, and the lease outlasts the deadline.
            StoreUnavailable
        """
        owner = head.owner
        assert owner is not None  # noqa: S101 - for the type checker
        while await self._nodes.lease_stands(owner.node, owner.incarnation):
            if head.epoch != suspect_epoch:
                return Standing.IN_OFFICE
            try:
                timeout_s = min(BURY_TIMEOUT_S, until.demand())
                dead = await self._calls.bury(owner.node, head.key, head.epoch, timeout_s=timeout_s)
                return Standing.VACATED if dead else Standing.IN_OFFICE
            except errors.OwnerUnreachable:
                await self._wait(head, until)
        return Standing.LAPSED

    async def _wait(self, head: records.Head, until: deadline.Deadline) -> None:
        pause_s = LEASE_POLL_S * self._rng.uniform(0.5, 1.5)
        if until.left_s() <= pause_s:
            raise errors.OwnerUnreachable(
                "the session's process and its node do not answer, and the node's lease has not "
                "lapsed yet; try again",
                session=head.key.session,
                tenant=head.key.tenant,
            )
        await self._clock.sleep(pause_s)
