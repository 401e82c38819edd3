"""`make bench`: every figure in one run, as a table and as `build/bench.json`."""

import argparse
import asyncio
import functools
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping

from loadtests import (
    balance,
    churning,
    density,
    figures,
    files,
    heavy_imports,
    herd,
    soak,
    throughput,
    turns,
    waking,
    workspaces,
    world,
)

Scenario = Callable[[world.World], Awaitable[list[figures.Figure]]]

#: In order; the last loses a node.
SCENARIOS: dict[str, Scenario] = {
    "turn": turns.warm_turn,
    "throughput": throughput.throughput,
    "history": turns.long_history,
    "files": files.one_changed,
    "wake": waking.wake,
    "wake_cold": waking.wake_cold,
    "churn": churning.churn,
    "density": density.density,
    "pandas": heavy_imports.pandas,
    "workspace": workspaces.workspace,
    "balance": balance.balance,
    "herd": herd.herd,
}
#: Takes an hour, so it runs only when it is named.
SOAK = "soak"
SOAK_CYCLES = 10_000


async def _run(
    scenarios: Mapping[str, Scenario], folder: pathlib.Path, output: pathlib.Path
) -> int:
    """Run scenarios on one deployment; returns how many failed. What was measured is kept."""
    rows: list[figures.Figure] = []
    failed = 0
    async with world.world(folder) as here:
        for name, scenario in scenarios.items():
            began_s = time.monotonic()
            print(f"{name} …", file=sys.stderr)
            try:
                try:
                    rows += await scenario(here)
                finally:
                    await here.clear()
            except Exception:
                # The others' figures are worth having all the same.
                traceback.print_exc()
                failed += 1
            print(f"{name}: {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    figures.write(rows, output)
    return failed


def main() -> None:
    """Run all scenarios but the soak, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [*SCENARIOS, SOAK]
    parser.add_argument("scenario", nargs="*", choices=[*known, []], default=[])
    parser.add_argument("--cycles", type=int, default=SOAK_CYCLES, help="of the soak")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/bench.json"))
    arguments = parser.parse_args()
    everything = SCENARIOS | {SOAK: functools.partial(soak.soak, cycles=arguments.cycles)}
    chosen = {name: everything[name] for name in arguments.scenario or SCENARIOS}
    with tempfile.TemporaryDirectory(prefix="torpor-bench-", ignore_cleanup_errors=True) as folder:
        failed = asyncio.run(_run(chosen, pathlib.Path(folder), arguments.output))
    sys.exit(failed and f"{failed} of {len(chosen)} scenarios failed")


if __name__ == "__main__":
    main()
