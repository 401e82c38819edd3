"""Tenants and API keys are made on the store itself: whoever may is who holds its password."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from torpor.cli import options

if TYPE_CHECKING:
    from torpor.storage import store

Result = TypeVar("Result")


def with_catalog(
    config: pathlib.Path | None,
    assignments: list[str],
    use: "Callable[[store.Catalog], Awaitable[Result]]",
) -> Result:
    """Return what `use(catalog)` returns, on the store that the settings name.

    Raises:
        InvalidField: the settings are wrong.
        StoreUnavailable, StoreBelowDurability, and what `use` raises.
    """
    from torpor.storage import redis_store

    place = options.settings_here(config, assignments).deployment

    async def run() -> Result:
        opened = redis_store.open(place)
        try:
            return await use(opened.catalog)
        finally:
            await opened.close()

    return asyncio.run(run())
