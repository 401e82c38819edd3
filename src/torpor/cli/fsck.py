"""`torpor fsck`."""

import asyncio
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from torpor import definition, errors, ids
from torpor.cli import failures, options, output

if TYPE_CHECKING:
    from torpor import deployment
    from torpor.storage import findings
    from torpor.storage import fsck as checks

_COLOURS = {"damage": typer.colors.RED, "warning": typer.colors.YELLOW}


def fsck(
    ctx: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="This tenant alone.")] = None,
    session: Annotated[
        str | None, typer.Option(help="This session of the tenant alone; looks for no orphans.")
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Rebuild indexes, move corrupt blobs and orphans to quarantine. Heads of sessions "
            "are never written to: damage there is repaired by the next wake.",
        ),
    ] = False,
    orphans_older_than: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="Judge only what nobody touched for so long, and delete it only after it lay in "
            "quarantine for as long.",
        ),
    ] = "7d",
    config: options.ConfigFile = None,
    set_: options.Assignments = [],  # noqa: B006 - typer copies it
    data_dir: Annotated[
        pathlib.Path | None,
        typer.Option(help="Of a running `torpor dev`; else the one here, or torpor.yaml."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Check all that is stored, also while sessions work; exits with 1 if something remains."""
    from torpor.storage import fsck as checks

    tenant = tenant or ctx.obj.tenant
    if session and not tenant:
        raise errors.InvalidField("--session needs --tenant", field="tenant")
    for kind, name in (("tenant", tenant), ("session", session)):
        if name is not None:
            ids.check_name(kind, name)
    plan = checks.Plan(
        tenant=tenant or "",
        session=session or "",
        repair=repair,
        grace_s=definition.parse_duration_s(orphans_older_than),
    )
    voice = _Voice(as_json=output.as_json(ctx, json))
    place = options.settings_here(config, set_, data_dir).deployment
    summary = asyncio.run(_run(place, plan, voice))
    voice.conclude(summary)
    if summary.remaining:
        raise typer.Exit(failures.ERROR)


async def _run(
    place: "deployment.Deployment", plan: "checks.Plan", voice: "_Voice"
) -> "checks.Summary":
    from torpor.storage import fsck as checks
    from torpor.storage import keyring, redis_store

    masters = keyring.load(place.signing_key_file)
    opened = redis_store.open(place, reads_wait=False)
    try:
        run = checks.Fsck(
            opened=opened,
            storage=place.storage,
            masters=masters,
            plan=plan,
            report=voice.tell,
            progress=voice.progress,
        )
        return await run.run()
    finally:
        voice.clear()
        await opened.close()


class _Voice:
    """Findings as they come on stdout; how far it is, on a terminal's stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown = False

    def tell(self, finding: "findings.Finding") -> None:
        """Write one finding."""
        self.clear()
        if self._as_json:
            output.json_line({"finding": finding})
            return
        name = f"{finding.tenant}/{finding.session}" if finding.session else finding.tenant
        severity = typer.style(f"{finding.severity:<8}", fg=_COLOURS.get(finding.severity))
        output.line(" ".join(filter(None, (severity, finding.what, name, finding.where))))
        output.line(f"         {finding.message}")

    def progress(self, summary: "checks.Summary") -> None:
        """Say how far it is, in one line that is written over."""
        if sys.stderr.isatty():
            self._shown = True
            typer.echo(f"\r{summary.sessions} sessions", err=True, nl=False)

    def clear(self) -> None:
        """Take that line away."""
        if self._shown:
            self._shown = False
            typer.echo("\r\x1b[K", err=True, nl=False)

    def conclude(self, summary: "checks.Summary") -> None:
        """Write the last line."""
        if self._as_json:
            output.json_line({"summary": summary})
            return
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.found.items()))
        output.line(
            f"tenants: {summary.tenants}, sessions: {summary.sessions}, blobs: {summary.blobs}; "
            f"{found or 'all is well'}"
            + (f"; {summary.repaired} mended" if summary.repaired else "")
            + (f"; {summary.remaining} remain" if summary.remaining else "")
        )
        piles = {
            "nobody names yet, or any more, and are young": summary.young,
            "lie in quarantine": summary.quarantined,
            "were deleted from quarantine": summary.purged,
        }
        for text, pile in piles.items():
            if pile.count:
                output.line(f"{pile.count} blobs ({_size(pile.size_bytes)}) {text}")


def _size(size_bytes: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size_bytes < 1_024:
            return f"{size_bytes:.0f} {unit}"
        size_bytes //= 1_024
    return f"{size_bytes} GiB"
