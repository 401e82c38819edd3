"""`make bench`: every figure in one run, as a table and as `build/bench.json`."""

import argparse
import asyncio
import pathlib
import sys
import tempfile

from loadtests import balance, figures, files, turns, waking, world

SCENARIOS = {
    "turn": turns.warm_turn,
    "history": turns.long_history,
    "files": files.one_changed,
    "wake": waking.wake,
    "density": waking.density,
    "balance": balance.balance,
}


async def _run(names: list[str], folder: pathlib.Path) -> list[figures.Figure]:
    rows: list[figures.Figure] = []
    async with world.world(folder) as here:
        for name in names:
            print(f"{name} …", file=sys.stderr)
            rows += await SCENARIOS[name](here)
            await here.clear()
    return rows


def main() -> None:
    """Run all scenarios, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], default=[])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/bench.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torpor-bench-", ignore_cleanup_errors=True) as folder:
        rows = asyncio.run(_run(arguments.scenario or list(SCENARIOS), pathlib.Path(folder)))
    figures.write(rows, arguments.output)


if __name__ == "__main__":
    main()
