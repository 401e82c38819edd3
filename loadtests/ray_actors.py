"""Stock Ray actors: what sessions are held against.

Actors import this module, so it imports nothing that Ray's own worker has not.
"""

import asyncio
import functools
import importlib
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import ray

from loadtests import waiting

MESSAGE = b"m" * 200
#: Said of every floor that has actors started: a raylet has one starter for all its workers.
STARTED_BY_US = (
    "started through torpor's worker starter, which costs each some 20 ms of CPU (about 3 %) more"
)
#: What runs when a worker starts; one that was forked from another process started as that one.
WORKER = "default_worker.py"
#: Ray starts some processes before anybody asks: so many of each node are used up first.
READY_MAX = 2
#: A killed process is gone within milliseconds.
END_TIMEOUT_S = 30.0


class Echo:
    """Does the imports of an agent and answers."""

    def __init__(self, imports: Sequence[str]) -> None:
        for name in imports:
            importlib.import_module(name)

    def echo(self, message: bytes) -> bytes:
        """Return what came."""
        return message

    def origin(self) -> tuple[int, list[str]]:
        """Return the process's id and how it was started."""
        return os.getpid(), sys.orig_argv


# Wrapped once: wrapping again would export the class to the cluster again, at the floor's expense.
_CLASS: Any = ray.remote(Echo)


class RayActor:
    """A stock actor that has answered once."""

    def __init__(self, handle: Any, created_s: float) -> None:
        self.handle = handle
        #: Seconds from its creation to its first reply.
        self.created_s = created_s

    def echo(self) -> object:
        """Call it and wait for the reply."""
        return ray.get(self.handle.echo.remote(MESSAGE))

    async def end(self) -> None:
        """Kill it and wait until its process is gone.

        Raises:
            RuntimeError: it was not started as Ray starts processes, or does not die.
        """
        pid, command = await self.handle.origin.remote()
        ray.kill(self.handle)
        if not any(word.endswith(WORKER) for word in command):
            raise RuntimeError(f"no stock actor: its process was started as {command}")

        async def gone() -> bool:
            return not _exists(pid)

        await waiting.until(gone, f"process {pid} of a killed actor is gone", END_TIMEOUT_S)


def _exists(pid: int) -> bool:
    return pathlib.Path(f"/proc/{pid}").exists()


def nodes() -> list[str]:
    """Return the ids of Ray's nodes."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


async def start(node: str, imports: Sequence[str] = ()) -> RayActor:
    """Return a new actor on a node that did the imports and has answered."""
    began_s = time.perf_counter()
    options = {"num_cpus": 0, "label_selector": {"ray.io/node-id": node}}
    handle = _CLASS.options(**options).remote(list(imports))
    await handle.echo.remote(MESSAGE)
    return RayActor(handle, time.perf_counter() - began_s)


async def start_many(count: int, imports: Sequence[str], at_once: int) -> list[RayActor]:
    """Return that many actors, spread over the nodes."""
    places = nodes()
    return await waiting.few_at_a_time(
        [functools.partial(start, places[i % len(places)], imports) for i in range(count)],
        at_once,
    )


async def end_all(actors: Sequence[RayActor]) -> None:
    """End them all."""
    await asyncio.gather(*(actor.end() for actor in actors))


async def warm_up(imports: Sequence[str] = ()) -> None:
    """Use up the processes that Ray keeps ready, and have everything compiled and cached."""
    ready = READY_MAX * len(nodes())
    await end_all(await start_many(ready, imports, at_once=ready))
