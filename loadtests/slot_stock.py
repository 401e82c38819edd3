"""The slots that nodes hold in stock, as operators see them."""

import time

from loadtests import waiting, world

#: Nodes publish once a second and are looked at as often, and with each look they may begin a start
#: that takes as long: what stood still for longer is true.
STEADY_S = 3.5
#: As long as one look and one publication: enough where it is known that the node has a slot.
LOOKED_S = 1.5
#: A stock is made up again within this on a slow machine.
REFILL_TIMEOUT_S = 60.0
#: A stock that nobody wants any more is gone a minute after the last wake.
EMPTY_TIMEOUT_S = 120.0


async def by_node(here: world.World) -> dict[str, int]:
    """Return the slots in stock of every node that takes sessions, by Ray's node id."""
    nodes = await here.client.admin.nodes()
    return {node.id: node.slots_in_stock for node in nodes if node.alive and not node.draining}


async def steady(here: world.World, *, on: str = "") -> dict[str, int]:
    """Wait until no stock changes any more; returns the stock.

    With `on` until that node has a slot, and all stood still for a moment.

    Raises:
        RuntimeError: that does not happen.
    """
    seen: dict[str, int] = {}
    since_s = time.monotonic()

    async def still() -> bool:
        nonlocal seen, since_s
        now = await by_node(here)
        if now != seen:
            seen, since_s = now, time.monotonic()
        enough = not on or now.get(on, 0) >= 1
        return enough and time.monotonic() - since_s >= (LOOKED_S if on else STEADY_S)

    what = f"node {on[:8]} has a slot in stock" if on else "the slots in stock are steady"
    await waiting.until(still, what, REFILL_TIMEOUT_S)
    return seen


async def empty(here: world.World) -> None:
    """Wait until no node has a slot in stock: nobody woke anything lately.

    Raises:
        RuntimeError: that does not happen.
    """

    async def none() -> bool:
        return not any((await by_node(here)).values())

    await waiting.until(none, "no slot is in stock", EMPTY_TIMEOUT_S)
