"""How to reach a gateway, without loading gRPC before somebody does.

Session processes import `torpor` for `torpor.Agent` alone; gRPC would cost each of them memory and
must not be forked.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from torpor import client

#: Where `torpor dev` listens.
ADDRESS = "localhost:7420"


def connect(
    address: str = ADDRESS,
    *,
    api_key: str | None = None,
    tenant: str | None = None,
    timeout_s: float | None = None,
) -> "AbstractAsyncContextManager[client.Client]":
    """Connect to a gateway: `async with torpor.connect(…) as client`.

    Args:
        address: `host:port` of any gateway.
        api_key: who calls; the gateway says whether it needs one.
        tenant: for operators, whose sessions are meant; otherwise the key's tenant.
        timeout_s: the deadline of calls that name none, instead of each method's own default.

    Raises:
        InvalidField: the address is not `host:port`, or the key or the tenant cannot be a header.
    """
    from torpor import client

    return client.connect(address, api_key=api_key, tenant=tenant, timeout_s=timeout_s)


def connect_sync(
    address: str = ADDRESS,
    *,
    api_key: str | None = None,
    tenant: str | None = None,
    timeout_s: float | None = None,
) -> "AbstractContextManager[client.BlockingClient]":
    """Connect as `connect` does, to methods that block: `with torpor.connect_sync(…) as client`."""
    from torpor import client

    return client.connect_sync(address, api_key=api_key, tenant=tenant, timeout_s=timeout_s)
