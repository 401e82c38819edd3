"""What a commit costs with many files in the workspace."""

from loadtests import figures, floors, world

MANY, FEW = 10_000, 10
CHANGES = 40


async def one_changed(here: world.World) -> list[figures.Figure]:
    """One changed file among 10,000 against one among 10; what is more is held against a bare walk."""
    large, small = await here.session("librarian"), await here.session("librarian")
    await large.send(f"make {MANY}")
    await small.send(f"make {FEW}")
    many, few, walks = [], [], []
    for i in range(CHANGES):
        many.append(await floors.timed_async_s(lambda i=i: large.send(f"change {i}")))  # type: ignore[misc]
        few.append(await floors.timed_async_s(lambda i=i: small.send(f"change {i}")))  # type: ignore[misc]
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
