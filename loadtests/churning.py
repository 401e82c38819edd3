"""What an activation costs the whole machine in CPU, when sessions wake and leave all the time."""

import functools

from loadtests import figures, machine, ray_actors, slot_stock, waiting, waking, world
from torpor.client.sessions import Session

#: Activations and stock actors over which CPU is averaged.
ACTIVATIONS, ACTORS = 160, 24
AT_ONCE = 4


async def churn(here: world.World) -> list[figures.Figure]:
    """CPU-seconds of a wake, a turn and an eviction against a stock actor's creation, call, end."""
    await here.introduce("ledger")
    sessions = [await here.session("ledger") for _ in range(2 * AT_ONCE)]
    for session in sessions:
        await session.send(world.MESSAGE)
    await here.evict(sessions)
    await slot_stock.steady(here)
    # In turns, so that each has time to leave while the other of its pair is awake.
    pairs = list(zip(sessions[::2], sessions[1::2], strict=True))
    rounds = ACTIVATIONS // AT_ONCE

    async def wake_and_evict() -> None:
        work = [functools.partial(_alternate, pair, rounds) for pair in pairs]
        await waiting.few_at_a_time(work, AT_ONCE)
        # The slots that were used are made up again: that belongs to what they cost.
        await slot_stock.steady(here)

    value = await machine.spent_s(wake_and_evict()) / ACTIVATIONS
    await ray_actors.warm_up(waking.LEDGER_IMPORTS)
    places = ray_actors.nodes()

    async def create_and_kill() -> None:
        work = [functools.partial(_one, places[i % len(places)]) for i in range(ACTORS)]
        await waiting.few_at_a_time(work, AT_ONCE)

    floor = await machine.spent_s(create_and_kill()) / ACTORS
    return [
        figures.figure(
            f"CPU of an activation, whole machine, mean of {ACTIVATIONS}",
            "s",
            value,
            floor=floor,
            target=0.2,
            against=f"{ACTORS} stock Ray actors, create, call, kill; {ray_actors.STARTED_BY_US}; "
            f"both {AT_ONCE} at a time and less the machine's CPU of as long a time idle",
        )
    ]


async def _alternate(pair: tuple[Session, Session], times: int) -> None:
    for i in range(times):
        await pair[i % 2].send(world.MESSAGE)
        await pair[i % 2].evict()


async def _one(node: str) -> None:
    actor = await ray_actors.start(node, waking.LEDGER_IMPORTS)
    await actor.end()
