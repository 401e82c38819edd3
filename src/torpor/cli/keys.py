"""`torpor keys`."""

import hashlib
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from torpor import clock, errors, ids
from torpor.cli import catalog, options, output

if TYPE_CHECKING:
    from torpor.storage import store

app = typer.Typer(no_args_is_help=True, help="API keys; works on the store that torpor.yaml names.")

_DIGEST = re.compile(r"[0-9a-f]{64}")


@app.command()
def create(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Argument()],
    label: Annotated[str, typer.Option(help="What the key is for.")] = "",
    operator: Annotated[
        bool, typer.Option("--operator", help="May see nodes and act for other tenants.")
    ] = False,
    config: options.ConfigFile = None,
    set_: options.Assignments = [],  # noqa: B006 - typer copies it
    json: options.Json = False,
) -> None:
    """Make an API key and print it; it is stored nowhere and cannot be shown again."""
    key = ids.api_key()
    digest = hashlib.sha256(key.encode()).hexdigest()

    async def put(opened: "store.Catalog") -> None:
        from torpor.storage import records

        now_ms = clock.SystemClock().now_ms()
        meaning = records.ApiKey(tenant=tenant, operator=operator, label=label, created_ms=now_ms)
        await opened.put_key(digest, meaning)

    catalog.with_catalog(config, set_, put)
    if output.as_json(ctx, json):
        output.document({"key": key, "digest": digest, "tenant": tenant, "operator": operator})
    else:
        output.line(key)


@app.command()
def revoke(
    key: Annotated[
        str, typer.Argument(help="The key, or its SHA-256 in hex; - reads it from stdin.")
    ],
    config: options.ConfigFile = None,
    set_: options.Assignments = [],  # noqa: B006 - typer copies it
) -> None:
    """Forget a key; gateways may go on accepting it for a few seconds."""
    given = sys.stdin.read().strip() if key == "-" else key
    digest = given if _DIGEST.fullmatch(given) else hashlib.sha256(given.encode()).hexdigest()
    if not catalog.with_catalog(config, set_, lambda opened: opened.revoke_key(digest)):
        raise errors.NotFound(f"there is no API key with the SHA-256 {digest}", digest=digest)
    output.note("the key is revoked")
