"""`torpor doctor`."""

import os
from typing import Annotated

import typer

from torpor import errors
from torpor.cli import failures, options, output


def doctor(
    ctx: typer.Context,
    ray: Annotated[bool, typer.Option("--ray", help="Look for the Ray cluster too.")] = False,
    config: options.ConfigFile = None,
    set_: options.Assignments = [],  # noqa: B006 - typer copies it
    json: options.Json = False,
) -> None:
    """Say whether torpor can run here, and what to do if not; exits with 1 if something fails."""
    from torpor import doctor as checks

    findings = list(checks.machine(os.environ))
    try:
        settings = options.settings_here(config, set_)
    except errors.FailedPrecondition:
        findings.append(checks.local_folder())
    except errors.InvalidField as error:
        remedy = "write torpor.yaml, or use --config; `torpor dev` needs neither"
        findings.append(checks.Finding("settings", checks.Verdict.FAIL, error.message, remedy))
    else:
        source = ", ".join(settings.files) or "of the environment"
        findings.append(checks.Finding("settings", checks.Verdict.OK, source))
        findings.extend(checks.place(settings.deployment))
    if ray:
        findings.append(checks.ray_cluster())
    if output.as_json(ctx, json):
        output.document(findings)
    else:
        output.table(
            ("CHECK", "VERDICT", "DETAIL", "REMEDY"),
            [(found.name, found.verdict, found.detail, found.remedy) for found in findings],
        )
    if checks.failed(findings):
        raise typer.Exit(failures.ERROR)
