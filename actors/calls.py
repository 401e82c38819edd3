"""How a gateway reaches node agents and session actors, as a protocol.

`torpor.actors.ray_calls` does it over Ray, `torpor.actors.lane_calls` over sockets where it can;
tests of the router use an implementation of their own.

Every method raises the error that a `Refusal` stands for, and besides:

- `OwnerUnreachable` when the other side is dead, cannot be found, or did not answer in time. For
  `deliver`, `control` and `place_file` that means the call may or may not have been carried out:
  the same request id tells, whoever owns the session then.
"""

from typing import Protocol

from torpor.actors import protocol
from torpor.storage import records


class Calls(Protocol):
    """Calls into the cluster; each is bounded by `timeout_s`."""

    async def activate(
        self, node: records.NodeRecord, request: protocol.Activate, *, timeout_s: float
    ) -> protocol.Activated:
        """Ask a node's agent to wake a session."""
        ...

    async def bury(
        self, node: str, key: records.SessionKey, epoch: int, *, timeout_s: float
    ) -> bool:
        """Ask a node's agent whether the process of that epoch is dead; it clears the owner if so.

        The agent kills a process that answers nobody. False: it lives and answers.
        """
        ...

    async def inspect_agent(
        self, node: str, import_path: str, *, timeout_s: float
    ) -> protocol.AgentDescription:
        """Import an agent on a node, in a process of its own, and describe it."""
        ...

    async def drain(self, node: str, *, timeout_s: float) -> None:
        """Tell a node's agent to take no more sessions and to evict those it has."""
        ...

    async def deliver(
        self, seat: protocol.Seat, request: protocol.Deliver, *, timeout_s: float
    ) -> protocol.Delivered:
        """Hand a message to the owner and await the committed turn."""
        ...

    async def control(
        self, seat: protocol.Seat, request: protocol.Control, *, timeout_s: float
    ) -> protocol.Controlled:
        """Evict, pause or resume through the owner."""
        ...

    async def place_file(
        self, seat: protocol.Seat, request: protocol.PlaceFile, *, timeout_s: float
    ) -> protocol.Placed:
        """Put an uploaded blob into the owner's workspace."""
        ...

    async def drain_inbox(self, seat: protocol.Seat, *, timeout_s: float) -> None:
        """Tell the owner to look into its inbox."""
        ...
