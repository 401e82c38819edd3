"""The floors: what the parts cost bare, measured beside the whole."""

import asyncio
import contextlib
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import redis

from loadtests import ray_actors

#: What a commit of the benchmark's agent carries: its state, and the turn's two events.
COMMIT_BYTES = 2_048 + 2 * 300

#: The least that a fenced commit can be: compare, then write as many bytes.
FENCED_SCRIPT = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 'FENCED' end
if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[2] then return 'FENCED' end
redis.call('SET', KEYS[2], ARGV[3])
return redis.call('HINCRBY', KEYS[1], 'version', 1)
"""


def _serve_echo(port: Any) -> None:
    async def serve() -> None:
        async def echo(message: bytes, _: Any) -> bytes:
            return message

        handler: Any = grpc.unary_unary_rpc_method_handler(echo)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("floor.Floor", {"Echo": handler}),)
        )
        number = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        port.put(number)
        await server.wait_for_termination()

    asyncio.run(serve())


@contextlib.asynccontextmanager
async def grpc_echo() -> AsyncIterator[Callable[[], Any]]:
    """Yield an awaitable call of a bare `grpc.aio` echo in another process."""
    context = multiprocessing.get_context("spawn")
    port: Any = context.SimpleQueue()
    process = context.Process(target=_serve_echo, args=(port,), daemon=True)
    process.start()
    number = await asyncio.to_thread(port.get)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{number}") as channel:
        call: Any = channel.unary_unary("/floor.Floor/Echo")
        yield lambda: call(ray_actors.MESSAGE)
    process.terminate()


def fenced_script(store_url: str) -> Callable[[], object]:
    """Return a blocking call of the bare fenced script, on the deployment's own store."""
    client = redis.Redis.from_url(store_url)
    client.hset("{floor}:head", mapping={"epoch": 1, "nonce": "n", "version": 0})
    script = client.register_script(FENCED_SCRIPT)
    keys, data = ["{floor}:head", "{floor}:state"], os.urandom(COMMIT_BYTES)
    return lambda: script(keys=keys, args=["1", "n", data])


def timed_s(call: Callable[[], object]) -> float:
    """Return the seconds of a blocking call."""
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


async def timed_async_s(call: Callable[[], Any]) -> float:
    """Return the seconds of an awaitable call."""
    began_s = time.perf_counter()
    await call()
    return time.perf_counter() - began_s
