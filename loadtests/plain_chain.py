"""What one would build first: gRPC gateway → Ray actor → fenced script with fsync, and no more.

Actors import this module, so it imports nothing but what they need.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import ray
import redis

from loadtests import floors, ray_actors

METHOD = ("plain.Plain", "Turn")


class PlainSession:
    """A session as an actor, whose every turn is one fenced script."""

    def __init__(self, store_url: str, number: int) -> None:
        client = redis.Redis.from_url(store_url)
        self._keys = [f"{{plain-{number}}}:head", f"{{plain-{number}}}:state"]
        client.hset(self._keys[0], mapping={"epoch": 1, "nonce": "n", "version": 0})
        self._script = client.register_script(floors.FENCED_SCRIPT)
        self._state = os.urandom(floors.COMMIT_BYTES)

    def turn(self, message: bytes) -> bytes:
        """Commit as many bytes as a session of the benchmark does, then answer."""
        if self._script(keys=self._keys, args=["1", "n", self._state]) == b"FENCED":
            raise RuntimeError("fenced")
        return message[::-1]


class PlainGateway:
    """A gRPC server in an actor that passes messages on to sessions."""

    def __init__(self, sessions: list[Any]) -> None:
        self._sessions = sessions

    async def start(self) -> int:
        """Listen; returns the port. A request is a session's number in one byte, and a message."""

        async def turn(request: bytes, _: Any) -> Any:
            return await self._sessions[request[0]].turn.remote(request[1:])

        handler: Any = grpc.unary_unary_rpc_method_handler(turn)
        service, method = METHOD
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port


@contextlib.asynccontextmanager
async def chain(
    store_url: str, sessions: int
) -> AsyncIterator[Callable[[int, bytes], Awaitable[bytes]]]:
    """Yield a call of (number of the session, message) → reply; sessions are on all nodes."""
    session_class: Any = ray.remote(PlainSession)
    gateway_class: Any = ray.remote(PlainGateway)
    places = ray_actors.nodes()

    def options(number: int) -> dict[str, Any]:
        node = places[number % len(places)]
        return {"num_cpus": 0, "label_selector": {"ray.io/node-id": node}}

    actors = [session_class.options(**options(i)).remote(store_url, i) for i in range(sessions)]
    gateway = gateway_class.options(max_concurrency=1_000, **options(0)).remote(actors)
    try:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{await gateway.start.remote()}"
        ) as channel:
            turn: Any = channel.unary_unary("/" + "/".join(METHOD))
            yield lambda number, message: turn(bytes([number]) + message)
    finally:
        for actor in (gateway, *actors):
            ray.kill(actor)
