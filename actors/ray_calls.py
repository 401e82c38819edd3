"""`Calls` over Ray: finds actors by name, bounds calls, tells an answer from a broken call."""

import asyncio
import collections
import concurrent.futures
import functools
from typing import Any

import ray

from torpor import errors
from torpor.actors import protocol
from torpor.storage import records

#: Handles kept: more than the sessions that one gateway talks to within minutes.
HANDLES_MAX = 4_096
#: Threads that ask Ray's control service where an actor is. They hang while it is away, so they are
#: not those that read files; more askers than these wait.
FINDERS = 8


class RayCalls:
    """Calls to node agents and session actors of this Ray cluster."""

    def __init__(self) -> None:
        self._handles: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._finders = concurrent.futures.ThreadPoolExecutor(FINDERS, "find-actor")

    async def activate(
        self, node: records.NodeRecord, request: protocol.Activate, *, timeout_s: float
    ) -> protocol.Activated:
        """Ask a node's agent to wake a session."""
        answer: protocol.Activated | protocol.Refusal = await self._call(
            node.agent_actor, "activate", request, timeout_s=timeout_s
        )
        return protocol.accept(answer)

    async def bury(
        self, node: str, key: records.SessionKey, epoch: int, *, timeout_s: float
    ) -> bool:
        """Ask a node's agent whether the process of that epoch is dead."""
        name = protocol.node_agent_name(node)
        return bool(await self._call(name, "bury", key, epoch, timeout_s=timeout_s))

    async def inspect_agent(
        self, node: str, import_path: str, *, timeout_s: float
    ) -> protocol.AgentDescription:
        """Import an agent on a node and describe it."""
        name = protocol.node_agent_name(node)
        answer: protocol.AgentDescription | protocol.Refusal = await self._call(
            name, "inspect_agent", import_path, timeout_s=timeout_s
        )
        return protocol.accept(answer)

    async def drain(self, node: str, *, timeout_s: float) -> None:
        """Tell a node's agent to take no more sessions and to evict those it has."""
        await self._call(protocol.node_agent_name(node), "drain", timeout_s=timeout_s)

    async def deliver(
        self, seat: protocol.Seat, request: protocol.Deliver, *, timeout_s: float
    ) -> protocol.Delivered:
        """Hand a message to the owner and await the committed turn."""
        packed = protocol.pack(request)
        answer = await self._call(seat.owner.actor, "deliver", packed, timeout_s=timeout_s)
        return protocol.accept(protocol.unpack_delivered(answer))

    async def control(
        self, seat: protocol.Seat, request: protocol.Control, *, timeout_s: float
    ) -> protocol.Controlled:
        """Evict, pause or resume through the owner."""
        answer: protocol.Controlled | protocol.Refusal = await self._call(
            seat.owner.actor, "control", request, timeout_s=timeout_s
        )
        return protocol.accept(answer)

    async def place_file(
        self, seat: protocol.Seat, request: protocol.PlaceFile, *, timeout_s: float
    ) -> protocol.Placed:
        """Put an uploaded blob into the owner's workspace."""
        answer: protocol.Placed | protocol.Refusal = await self._call(
            seat.owner.actor, "place_file", request, timeout_s=timeout_s
        )
        return protocol.accept(answer)

    async def drain_inbox(self, seat: protocol.Seat, *, timeout_s: float) -> None:
        """Tell the owner to look into its inbox."""
        protocol.accept(
            await self._call(seat.owner.actor, "drain_inbox", seat.epoch, timeout_s=timeout_s)
        )

    async def _call(self, actor: str, method: str, *arguments: object, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                handle = self._handles.get(actor) or await self._find(actor)
                return await getattr(handle, method).remote(*arguments)
        except TimeoutError:
            raise errors.OwnerUnreachable(
                f"{actor} did not answer within {timeout_s:.1f} s", actor=actor
            ) from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, errors.TorporError):
                raise error.cause from None
            raise errors.Internal(f"{actor} failed: {error.cause!r}", actor=actor) from error
        except (ray.exceptions.RayError, ValueError) as error:
            self._handles.pop(actor, None)
            raise errors.OwnerUnreachable(
                f"{actor} cannot be reached: {type(error).__name__}", actor=actor
            ) from error

    async def _find(self, actor: str) -> Any:
        # A synchronous call to Ray's control service, so it must not run on the event loop.
        find = functools.partial(ray.get_actor, actor, namespace=protocol.NAMESPACE)
        handle = await asyncio.get_running_loop().run_in_executor(self._finders, find)
        self._handles[actor] = handle
        if len(self._handles) > HANDLES_MAX:
            self._handles.popitem(last=False)
        return handle
