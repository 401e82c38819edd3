"""`torpor serve`: the control plane on an existing Ray cluster and Redis."""

import asyncio
import signal
import sys

import ray

from torpor import control_plane, deployment, errors
from torpor.actors import ray_compat
from torpor.storage import redis_store


def run(place: deployment.Deployment) -> None:
    """Bring all nodes into service and keep them there until SIGINT or SIGTERM.

    What it started lives on without it: gateways and node agents are detached actors, and a second
    `torpor serve` takes over where this one ended.

    Raises:
        StoreUnavailable, StoreBelowDurability: before anything is started.
        SigningKeyMissing, FailedPrecondition: what keeps every node from service.
        FailedPrecondition: no Ray cluster answers.
    """
    asyncio.run(_serve(place))


async def _serve(place: deployment.Deployment) -> None:
    store = redis_store.open(place)
    await store.check_durability()
    await store.close()
    _say("joining the Ray cluster")
    ray_compat.join("auto")
    # Only now: joining sets handlers of Ray's own.
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    control = control_plane.ControlPlane(place)
    try:
        await control.reconcile()
    except errors.TorporError as error:
        if not control.running:
            raise
        _say(f"not all nodes are in service yet: {error}")
    gateways = ", ".join(each.gateway for each in control.running.values()) or "no node yet"
    _say(f"ready on {gateways}; Ctrl-C ends this, not them")
    keeping = asyncio.create_task(control.keep())
    await stop.wait()
    keeping.cancel()
    await control.close()
    await asyncio.to_thread(ray.shutdown)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 — this is the command's voice
