"""Agents that import pandas and matplotlib."""

from loadtests import density, figures, ray_actors, waking, world

AGENT, IMPORTS = "analyst", ("bench_analyst",)
WAKES, ACTORS = 20, 6
LIVE, LIVE_ACTORS = 40, 12


async def pandas(here: world.World) -> list[figures.Figure]:
    """A wake with a slot in stock, and the memory of a live session."""
    taken = await waking.side_by_side(here, AGENT, IMPORTS, wakes=WAKES, actors=ACTORS)
    return [
        figures.figure(
            f"wake, slot in stock, agent imports pandas, p50 of {WAKES}",
            "ms",
            figures.p50(taken.wakes) * 1000,
            floor=figures.p50(taken.actors) * 1000,
            target=0.02,
            against=f"p50 of {ACTORS} stock Ray actors that import pandas and matplotlib; "
            f"{ray_actors.STARTED_BY_US}; left out: {len(taken.missed)} wakes placed where no slot "
            "was",
        ),
        *waking.all_wakes("wake, agent imports pandas", taken),
        await density.memory(here, AGENT, IMPORTS, live=LIVE, actors=LIVE_ACTORS, target=0.25),
    ]
