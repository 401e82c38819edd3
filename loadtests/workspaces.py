"""What a wake takes when the session has a large workspace."""

import asyncio
import functools
import pathlib
import shutil

from loadtests import bench_agents, figures, floors, slot_stock, world
from torpor.client.sessions import Session

FILES, FILE_BYTES = 10_000, 100_000
#: Files written by one turn: more would make a commit of minutes.
FILES_PER_TURN = 1_000
WAKES, COPIES = 8, 3
#: Anything that leaves the files as they are.
GREETING = "hello"


async def workspace(here: world.World) -> list[figures.Figure]:
    """A wake with 10,000 files of 1 GB: where they still are, and on another node."""
    await here.introduce("librarian")
    large, empty = await here.session("librarian"), await here.session("librarian")
    for first in range(0, FILES, FILES_PER_TURN):
        await large.send(f"fill {first} {FILES_PER_TURN} {FILE_BYTES}")
    await empty.send(GREETING)
    full_s, bare_s, stayed = [], [], 0
    for _ in range(WAKES):
        node = (await large.get()).node
        full_s.append(await _wake_s(here, large))
        stayed += (await large.get()).node == node
        bare_s.append(await _wake_s(here, empty))
    moved_s = await _moves(here, large)
    copied_s = await _copies(pathlib.Path(here.local.deployment.storage), here)
    what = f"{FILES} files, {FILES * FILE_BYTES / 1e9:g} GB"
    return [
        figures.figure(
            f"wake with {what} where they still are, p50 of {WAKES}",
            "ms",
            figures.p50(full_s) * 1000,
            floor=figures.p50(bare_s) * 1000,
            target=2.0,
            against=f"p50 of {WAKES} wakes with an empty workspace, taken in turns; {stayed} of "
            f"{WAKES} were on the node that held the files",
        ),
        figures.figure(
            f"wake with {what} on another node, p50 of {len(moved_s)}",
            "s",
            figures.p50(moved_s),
            floor=figures.p50(copied_s),
            target=1.5,
            against=f"p50 of {COPIES} `cp -a` of such a tree from the shared storage",
        ),
    ]


async def _wake_s(here: world.World, session: Session) -> float:
    """Return the seconds of a wake with a slot in stock where the session was last."""
    node = (await session.get()).node
    await session.evict()
    await slot_stock.steady(here, on=node)
    return await floors.timed_async_s(functools.partial(session.send, GREETING))


async def _moves(here: world.World, session: Session) -> list[float]:
    """Return the seconds of wakes on one new node after the other."""
    took_s, left = [], []
    for _ in range(world.NODES - 1):
        left.append((await session.get()).node_name)
        await session.evict()
        await here.empty(left[-1])
        await slot_stock.steady(here)
        took_s.append(await floors.timed_async_s(functools.partial(session.send, GREETING)))
        if (await session.get()).node_name in left:
            raise RuntimeError("the session woke where it was not to")
    return took_s


async def _copies(storage: pathlib.Path, here: world.World) -> list[float]:
    """Return the seconds of copies of such a tree to where nodes have their workspaces."""
    tree = storage / "bench-tree"
    copy = pathlib.Path(here.local.deployment.scratch) / "bench-copy"
    tree.mkdir()
    await asyncio.to_thread(bench_agents.fill, tree, 0, FILES, FILE_BYTES)
    program = shutil.which("cp") or "cp"
    took_s = []
    for _ in range(COPIES):
        took_s.append(
            await floors.timed_async_s(functools.partial(_run, program, "-a", tree, copy))
        )
        await asyncio.to_thread(shutil.rmtree, copy)
    await asyncio.to_thread(shutil.rmtree, tree)
    return took_s


async def _run(*command: str | pathlib.Path) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise RuntimeError(f"{command[0]} failed")
