"""What a commit costs with many files in the workspace."""

import functools

from loadtests import figures, floors, world
from torpor.client.sessions import Session

MANY, FEW = 10_000, 10
CHANGES = 40


async def one_changed(here: world.World) -> list[figures.Figure]:
    """One changed file among 10,000 against among 10; the rest is held against a bare walk."""
    large, small = await here.session("librarian"), await here.session("librarian")
    await large.send(f"make {MANY}")
    await small.send(f"make {FEW}")
    many, few, walks = [], [], []
    for i in range(CHANGES):
        change = functools.partial(Session.send, text=f"change {i}")
        many.append(await floors.timed_async_s(functools.partial(change, large)))
        few.append(await floors.timed_async_s(functools.partial(change, small)))
        walks.append(float((await large.send("walk")).text))
    value, least, walk = (figures.p50(samples) * 1000 for samples in (many, few, walks))
    return [
        figures.figure(
            f"commit with one changed file among {MANY}, p50",
            "ms",
            value,
            floor=walk,
            ratio=(value - least) / walk,
            target=1.5,
            against=f"ratio: (it - {least:.2f} ms among {FEW}) / bare walk that stats the tree",
        )
    ]
