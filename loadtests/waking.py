"""What a wake takes, beside the creation of stock Ray actors."""

import asyncio
import functools
from collections.abc import Sequence

import msgspec

from loadtests import figures, floors, ray_actors, slot_stock, world
from torpor.client.sessions import Session

#: What a stock actor of the ledger's kind imports.
LEDGER_IMPORTS = ("bench_agents",)
#: Just enough that one of them may be beyond the 99th percentile.
WAKES, ACTORS = 100, 20
#: Warm turns after each wake.
WARM_TURNS = 3
#: Sessions woken at once, so that most find no slot, and how often.
BURST, BURSTS = 32, 2


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, taken in turns."""

    wakes: list[float] = []
    #: Wakes that were placed on a node without a slot in stock.
    missed: list[float] = []
    #: Turns right after the wakes.
    warm: list[float] = []
    #: Stock actors, creation to first reply.
    actors: list[float] = []


async def side_by_side(
    here: world.World, agent: str, imports: Sequence[str], *, wakes: int, actors: int
) -> Samples:
    """Return wakes of one session, each with a slot in stock, in turns with stock actors.

    Raises:
        RuntimeError: as many wakes found no slot as were to find one.
    """
    await here.introduce(agent)
    session = await here.session(agent)
    await session.send(world.MESSAGE)
    await ray_actors.warm_up(imports)
    places = ray_actors.nodes()
    taken = Samples()
    turn = functools.partial(session.send, world.MESSAGE)
    while len(taken.wakes) < wakes:
        node = (await session.get()).node
        await session.evict()
        in_stock = await slot_stock.steady(here, on=node)
        took_s = await floors.timed_async_s(turn)
        found = in_stock.get((await session.get()).node, 0) >= 1
        (taken.wakes if found else taken.missed).append(took_s)
        if len(taken.missed) >= wakes:
            raise RuntimeError(f"{wakes} wakes were placed on nodes without a slot in stock")
        # The slot that was taken is made up again, on the cores that what follows is timed on.
        await slot_stock.steady(here)
        for _ in range(WARM_TURNS):
            taken.warm.append(await floors.timed_async_s(turn))
        if len(taken.actors) < actors * len(taken.wakes) / wakes:
            actor = await ray_actors.start(places[len(taken.actors) % len(places)], imports)
            taken.actors.append(actor.created_s)
            await actor.end()
    return taken


async def wake(here: world.World) -> list[figures.Figure]:
    """A wake with a slot in stock, from the call to the committed reply."""
    taken = await side_by_side(here, "ledger", LEDGER_IMPORTS, wakes=WAKES, actors=ACTORS)
    floor = figures.p50(taken.actors) * 1000
    against = (
        f"p50 of {ACTORS} stock Ray actors, creation to first reply, the agent's imports; "
        f"{ray_actors.STARTED_BY_US}; left out: {len(taken.missed)} wakes placed where no slot was"
    )
    return [
        figures.figure(
            f"wake, slot in stock, p50 of {WAKES}",
            "ms",
            figures.p50(taken.wakes) * 1000,
            floor=floor,
            target=0.03,
            against=against,
        ),
        figures.figure(
            f"wake, slot in stock, p99 of {WAKES}",
            "ms",
            figures.p99(taken.wakes) * 1000,
            floor=floor,
            target=0.15,
            against=against,
        ),
        figures.figure(
            f"wake, slot in stock, against a warm turn, p50 of {WAKES}",
            "ms",
            figures.p50(taken.wakes) * 1000,
            floor=figures.p50(taken.warm) * 1000,
            target=5.0,
            against=f"p50 of {len(taken.warm)} warm durable turns, taken in turns",
        ),
        *all_wakes("wake", taken),
    ]


def all_wakes(what: str, taken: Samples) -> list[figures.Figure]:
    """Return what all wakes took, also those that found no slot; only stated."""
    wakes = [*taken.wakes, *taken.missed]
    against = f"{len(taken.missed)} of them were placed where no slot was"
    return [
        figures.figure(
            f"{what}, all of them, {name} of {len(wakes)}", "ms", of(wakes) * 1000, against=against
        )
        for name, of in (("p50", figures.p50), ("p99", figures.p99))
    ]


async def wake_cold(here: world.World) -> list[figures.Figure]:
    """Wakes that find no slot in stock, since so many come at once; as many stock actors at once.

    As many of the fastest as there were slots in stock are left out.
    """
    await here.introduce("ledger")
    sessions = [await here.session("ledger") for _ in range(BURST)]
    for session in sessions:
        await session.send(world.MESSAGE)
    await ray_actors.warm_up(LEDGER_IMPORTS)
    wakes: list[float] = []
    actors: list[float] = []
    for _ in range(BURSTS):
        await here.evict(sessions)
        in_stock = sum((await slot_stock.steady(here)).values())
        if in_stock >= BURST:
            raise RuntimeError(f"{in_stock} slots are in stock: raise BURST above them")
        wakes += sorted(await asyncio.gather(*(_wake_s(each) for each in sessions)))[in_stock:]
        await here.evict(sessions)
        await slot_stock.steady(here)
        started = await ray_actors.start_many(BURST, LEDGER_IMPORTS, at_once=BURST)
        actors += [actor.created_s for actor in started]
        await ray_actors.end_all(started)
    return [
        figures.figure(
            f"wake, no slot left, p50 of {len(wakes)}",
            "ms",
            figures.p50(wakes) * 1000,
            floor=figures.p50(actors) * 1000,
            target=0.35,
            against=f"stock Ray actors, the agent's imports; {ray_actors.STARTED_BY_US}; both "
            f"{BURST} at once, {BURSTS} times",
        )
    ]


async def _wake_s(session: Session) -> float:
    return await floors.timed_async_s(functools.partial(session.send, world.MESSAGE))
