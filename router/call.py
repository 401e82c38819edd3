"""What a call carries besides its request: who makes it, and until when."""

import contextvars
from collections.abc import Awaitable, Callable

import msgspec

from torpor import errors
from torpor.router import deadline


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes the call."""

    #: Whose sessions it is about.
    tenant: str
    operator: bool

    def demand_operator(self) -> None:
        """Return if the caller is an operator.

        Raises:
            OperatorOnly
        """
        if not self.operator:
            raise errors.OperatorOnly(tenant=self.tenant)


#: Set by the interceptors before a service is entered; every call runs in a context of its own.
identity: contextvars.ContextVar[Identity] = contextvars.ContextVar("identity")
#: Identifies the caller again, for calls that outlast an API key.
identify: contextvars.ContextVar[Callable[[], Awaitable[Identity]]] = contextvars.ContextVar(
    "identify"
)
until: contextvars.ContextVar[deadline.Deadline] = contextvars.ContextVar("until")
