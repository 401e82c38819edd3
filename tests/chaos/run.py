"""`make chaos`: breaks a whole deployment in every way that is known, and proves what must hold.

Exits with 0 only if no invariant was violated and all was healthy again after every fault. Needs
root, for network namespaces. A seed brings the same choices again; what a machine makes of them,
as always, is a matter of time.
"""

import argparse
import asyncio
import json
import pathlib
import random
import re
import secrets
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence

import msgspec
import rich.console

import battery
import clock_faults  # noqa: F401 - registers its faults, as those below
import load
import network
import network_faults  # noqa: F401
import process_faults  # noqa: F401
import report
import request_faults  # noqa: F401
import schedule
import storage_faults  # noqa: F401
import store_faults  # noqa: F401
from fault import FAULTS, Fault
from torpor import deployment
from torpor.testing import invariants, recording
from world import World

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"


def main() -> None:
    """Run what the arguments say."""
    arguments = _arguments()
    output = rich.console.Console(width=150, highlight=False)
    if arguments.list:
        for each in FAULTS.values():
            output.print(f"{each.cost.value:10} {each.name}{'  (may lose)' if each.loses else ''}")
        return
    seed = arguments.seed or str(secrets.randbelow(1_000_000))
    replay = _replay(arguments, seed)
    progress = Progress()
    progress.warn(f"seed {seed}: {replay}")
    run = Run(arguments, seed, progress)
    # Also one that is told to end leaves no namespaces and servers behind.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        asyncio.run(run.run())
    except network.Impossible as error:
        progress.clear()
        progress.warn(f"not run: {error}")
        sys.exit(not arguments.skip_if_impossible)
    progress.clear()
    rows, figures, totals = run.rows, run.figures, run.totals(replay)
    report.write(rows, figures, totals, BUILD)
    if arguments.json:
        sys.stdout.write(json.dumps([msgspec.to_builtins(row) for row in rows], indent=1) + "\n")
    else:
        report.show(rows, figures, totals, output)
    progress.warn(f"seed {seed}: {replay}")
    sys.exit(not report.passed(rows, totals))


class Run:
    """What the arguments say, stage by stage, each in a world of its own."""

    def __init__(self, arguments: argparse.Namespace, seed: str, progress: "Progress") -> None:
        self._arguments = arguments
        self._seed = seed
        self._progress = progress
        self._profile = schedule.PROFILES[arguments.profile]
        self._begun_s = time.monotonic()
        self._folder = BUILD / "chaos" / seed
        self._operations: list[recording.Operation] = []
        self._violations = 0
        self._broken_off = ""
        self.rows: list[report.Row] = []
        self.figures: list[report.Figure] = []

    async def run(self) -> None:
        """Run all stages, or what there is before somebody interrupts.

        Raises:
            network.Impossible: this machine allows no worlds.
        """
        # Of an earlier run with this seed.
        shutil.rmtree(self._folder, ignore_errors=True)
        for stage in schedule.stages(_chosen(self._arguments)):
            if not self._broken_off:
                await self._stage(stage)

    async def _stage(self, stage: schedule.Stage) -> None:
        folder = self._folder / stage.durability
        folder.mkdir(parents=True)
        recorder = recording.Recorder(folder / "operations.jsonl")
        self._progress.say(f"starting the world, durability {stage.durability}")
        async with (
            World(durability=stage.durability, logs=folder / "logs") as world,
            load.Load(
                world,
                recorder,
                random.Random(f"{self._seed}/load"),
                rate_per_s=self._profile.rate_per_s,
            ) as running,
        ):
            run = battery.Battery(
                world,
                running,
                invariants.Checker(recorder, probes=world.probes.folder),
                seed=self._seed,
                folder=folder,
                say=self._progress.say,
                warn=self._progress.warn,
            )
            minutes = self._arguments.minutes or self._profile.minutes
            try:
                await run.run(self._steps(stage), until_s=self._begun_s + 60 * minutes)
            except asyncio.CancelledError:
                # There is something to show all the same.
                run.broken_off = "interrupted"
        recorder.close()
        self._add(stage, run, recorder)

    def _steps(self, stage: schedule.Stage) -> Iterator[schedule.Step]:
        usual = stage.durability is deployment.Durability.FSYNC
        if self._arguments.fault or self._arguments.runs:
            return schedule.named(stage.faults, self._arguments.runs or 1)
        # What has a world of its own for a minute runs in any case.
        profile = msgspec.structs.replace(
            self._profile, complete=self._profile.complete or not usual
        )
        return schedule.steps(stage.faults, profile, self._seed)

    def _add(
        self, stage: schedule.Stage, run: battery.Battery, recorder: recording.Recorder
    ) -> None:
        # All rows: also of what there was no time for.
        names = [each.name for each in stage.faults]
        if stage.durability is deployment.Durability.FSYNC:
            names = [report.NO_FAULT, *names]
            self.figures = run.measures.figures()
        self.rows += [run.accounts.get(name, report.Account(name)).row() for name in names]
        self._operations += recorder.operations
        self._violations += len(run.violations)
        self._broken_off = run.broken_off

    def totals(self, command: str) -> report.Totals:
        """Return what is counted over all rows; `command` repeats the run."""
        return report.Totals(
            seed=self._seed,
            profile=self._profile.name,
            command=command,
            faults=sum(row.runs for row in self.rows if row.fault != report.NO_FAULT),
            operations=len(self._operations),
            appends=load.appends(self._operations),
            unknown=sum(each.ending is recording.Ending.UNKNOWN for each in self._operations),
            violations=self._violations,
            seconds=round(time.monotonic() - self._begun_s, 1),
            broken_off=self._broken_off,
        )


def _chosen(arguments: argparse.Namespace) -> Sequence[Fault]:
    return [FAULTS[name] for name in arguments.fault or FAULTS]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", choices=schedule.PROFILES, default=schedule.SHORT.name)
    parser.add_argument(
        "--seed", type=_seed, default=None, help="any word; a random number if not given"
    )
    parser.add_argument(
        "--fault",
        action="append",
        choices=FAULTS,
        metavar="NAME",
        help="only this one, alone; may be repeated",
    )
    parser.add_argument("--runs", type=int, default=0, help="of each fault, one at a time")
    parser.add_argument("--minutes", type=float, default=0.0, help="instead of the profile's")
    parser.add_argument("--list", action="store_true", help="name all faults and do nothing")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--skip-if-impossible",
        action="store_true",
        help="exit with 0 where network namespaces cannot be made",
    )
    return parser.parse_args()


def _seed(text: str) -> str:
    if not re.fullmatch(r"[\w-]+", text):
        # A folder has its name.
        raise argparse.ArgumentTypeError(f"{text!r} is not made of letters, digits, - and _")
    return text


def _replay(arguments: argparse.Namespace, seed: str) -> str:
    """Return the command that brings the same choices again."""
    words = ["--profile", arguments.profile, "--seed", seed]
    for name in arguments.fault or ():
        words += ["--fault", name]
    if arguments.runs:
        words += ["--runs", str(arguments.runs)]
    if arguments.minutes:
        words += ["--minutes", f"{arguments.minutes:g}"]
    return f'make chaos ARGS="{shlex.join(words)}"'


class Progress:
    """On a terminal one line that changes, elsewhere a line for each thing said."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Show how it goes on."""
        if self._terminal:
            self.clear()
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(text[:width])
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def warn(self, text: str) -> None:
        """Print something that stays."""
        self.clear()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._terminal:
            sys.stderr.write("\r\x1b[2K")


if __name__ == "__main__":
    main()
