"""What one more live session costs in memory."""

import functools
from collections.abc import Sequence

from loadtests import (
    figures,
    machine,
    processes,
    ray_actors,
    slot_stock,
    waiting,
    waking,
    world,
)

LIVE, ACTORS = 200, 60
#: Brought up at a time.
AT_ONCE = 4


async def density(here: world.World) -> list[figures.Figure]:
    """Memory of live idle sessions of the plain agent."""
    return [
        await memory(here, "ledger", waking.LEDGER_IMPORTS, live=LIVE, actors=ACTORS, target=0.35)
    ]


async def memory(
    here: world.World, agent: str, imports: Sequence[str], *, live: int, actors: int, target: float
) -> figures.Figure:
    """Return the machine's memory per live idle session, against that per stock actor.

    Raises:
        RuntimeError: sessions were evicted before they were counted.
    """
    await slot_stock.empty(here)
    await ray_actors.warm_up(imports)
    before = await machine.available_bytes()
    started = await ray_actors.start_many(actors, imports, AT_ONCE)
    floor = (before - await machine.available_bytes()) / actors / 1e6
    await ray_actors.end_all(started)
    # Those of earlier scenarios. What the sessions need is started for them, and counted.
    processes.end_fork_servers()
    before = await machine.available_bytes()
    await here.introduce(agent)
    sessions = [await here.session(agent) for _ in range(live)]
    turns = [functools.partial(session.send, world.MESSAGE) for session in sessions]
    await waiting.few_at_a_time(turns, AT_ONCE)
    # Slots in stock are no live sessions.
    await slot_stock.empty(here)
    used = (before - await machine.available_bytes()) / live / 1e6
    resident = [(await session.get()).resident for session in sessions]
    if not all(resident):
        raise RuntimeError(f"only {sum(resident)} of {live} sessions are live: memory is short")
    return figures.figure(
        f"memory of a live idle session, mean of {live}, agent {agent}",
        "MB",
        used,
        floor=floor,
        target=target,
        against=f"{actors} stock Ray actors with the agent's imports; both as differences of the "
        "machine's available memory; all that is there for the sessions is counted, fork servers "
        "included",
    )
