"""The async client as a whole."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from torpor.client import admin, agents, connection, retry, sessions


class Client:
    """One connection to one gateway."""

    def __init__(self, link: connection.Connection) -> None:
        self.sessions = sessions.Sessions(link)
        self.agents = agents.Agents(link)
        self.admin = admin.Admin(link)


@asynccontextmanager
async def connect(
    address: str,
    *,
    api_key: str | None = None,
    tenant: str | None = None,
    timeout_s: float | None = None,
    policy: retry.Policy | None = None,
) -> AsyncGenerator[Client]:
    """Yield a client, as `torpor.connect` says; `policy` is how often calls are repeated.

    Raises:
        InvalidField: the address is not `host:port`, or the key or the tenant cannot be a header.
    """
    link = connection.Connection(
        address,
        credentials=connection.Credentials(api_key=api_key, tenant=tenant),
        timeout_s=timeout_s,
        policy=policy,
    )
    try:
        yield Client(link)
    finally:
        await link.close()
