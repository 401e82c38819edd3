"""The channel to a gateway, and calls over it with credentials, deadlines and retries."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import msgspec
from grpc import aio

from torpor import clock, errors, limits, status
from torpor.client import retry
from torpor.v1 import admin_pb2_grpc, agents_pb2_grpc, sessions_pb2_grpc, workspaces_pb2_grpc

Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")

#: Reads, and writes that one gateway does alone.
READ_TIMEOUT_S = 30.0
#: What may first have to wake the session, or wait for the turn under way.
CONTROL_TIMEOUT_S = 60.0
#: A turn may take ten minutes by default, and waking comes before it.
TURN_TIMEOUT_S = 660.0
#: Nodes import the agent, and more than one may have to be asked.
REGISTER_TIMEOUT_S = 180.0
#: One file or log, in pieces; a gigabyte at 4 MB/s.
TRANSFER_TIMEOUT_S = 300.0
#: Draining waits for the turns of a node.
DRAIN_TIMEOUT_S = 900.0

_OPTIONS: tuple[tuple[str, int], ...] = (
    # A quiet turn or watch must notice a gateway that vanished without a word.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", limits.GRPC_RESPONSE_BYTES_MAX),
    ("grpc.max_send_message_length", limits.GRPC_REQUEST_BYTES_MAX),
    # Retries are made here, with the deadline and the request id in view.
    ("grpc.enable_retries", 0),
    # Otherwise a channel that failed waits up to two minutes before it dials again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


PORT_MAX = 65_535
#: A name or an address, IPv6 in brackets, and a port.
_ADDRESS = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})", re.ASCII)


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls."""

    api_key: str | None = None
    #: For operators: whose sessions are meant.
    tenant: str | None = None

    def metadata(self) -> aio.Metadata:
        """Return the headers that say so.

        Raises:
            InvalidField: a value cannot be a header.
        """
        pairs = []
        if api_key := _header("api_key", self.api_key):
            pairs.append(("authorization", f"Bearer {api_key}"))
        if tenant := _header("tenant", self.tenant):
            pairs.append(("x-torpor-tenant", tenant))
        return aio.Metadata(*pairs)


def _header(field: str, value: str | None) -> str:
    """Return what a header can carry: what is read from a file often ends with a line end."""
    stripped = (value or "").strip()
    if not (stripped.isascii() and stripped.isprintable()):
        # An API key is a secret, so the message does not show it.
        raise errors.InvalidField(
            f"{field} has characters other than printable ASCII: give its one line alone",
            field=field,
        )
    return stripped


def _checked_address(address: str) -> str:
    match = _ADDRESS.fullmatch(address.strip())
    if match is None or not 1 <= int(match[1]) <= PORT_MAX:
        raise errors.InvalidField(
            f"the address {address!r} is not host:port, as localhost:7420 is", field="address"
        )
    return match[0]


class Connection:
    """One channel. Make it on the event loop that uses it."""

    def __init__(
        self,
        address: str,
        *,
        credentials: Credentials,
        timeout_s: float | None = None,
        policy: retry.Policy | None = None,
        time: clock.Clock | None = None,
    ) -> None:
        self.address = _checked_address(address)
        self.metadata = credentials.metadata()
        self.policy = policy or retry.Policy()
        self.clock = time or clock.SystemClock()
        self._timeout_s = timeout_s
        self._channel = aio.insecure_channel(self.address, options=_OPTIONS)
        self.sessions = sessions_pb2_grpc.SessionsStub(self._channel)
        self.workspaces = workspaces_pb2_grpc.WorkspacesStub(self._channel)
        self.agents = agents_pb2_grpc.AgentsStub(self._channel)
        self.admin = admin_pb2_grpc.AdminStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._channel.close()

    async def call(
        self,
        method: aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float | None,
        default_s: float,
    ) -> Response:
        """Make a call, again if it may be; `default_s` is the method's own deadline.

        A request that changes something carries its request id, which therefore stays the same.

        Raises:
            TorporError: what the gateway said last, or what keeps us from it. What may be repeated
                has the id `request_id` to repeat it with.
        """

        async def once(left_s: float) -> Response:
            return await method(request, timeout=left_s, metadata=self.metadata)

        request_id = getattr(request, "request_id", "")
        try:
            return await self.retrying(
                once, timeout_s=timeout_s, default_s=default_s, changes=bool(request_id)
            )
        except errors.TorporError as error:
            if error.retryable and request_id:
                error.ids["request_id"] = request_id
            raise

    async def retrying(
        self,
        operation: Callable[[float], Awaitable[Result]],
        *,
        timeout_s: float | None,
        default_s: float,
        changes: bool = False,
    ) -> Result:
        """Run `operation(seconds left)` until it succeeds, may not be repeated, or time is up.

        Of an operation that `changes` something, a refusal of the last attempt is not passed on as
        certain if an attempt before it was not answered.
        """
        deadline_s = self.clock.monotonic_s() + (timeout_s or self._timeout_s or default_s)
        failures = 0
        unanswered = False
        while True:
            try:
                return await operation(max(0.0, deadline_s - self.clock.monotonic_s()))
            except aio.AioRpcError as rpc_error:
                failures += 1
                error, least_s = status.failure(rpc_error, address=self.address)
                wait_s = self.policy.delay_s(failures, at_least_s=least_s)
                late = self.clock.monotonic_s() + wait_s >= deadline_s
                if not error.retryable or failures >= self.policy.attempts_max or late:
                    raise _in_doubt(error, changes and unanswered) from None
                unanswered |= isinstance(error, errors.Unavailable)
            await self.clock.sleep(wait_s)

    async def stream(
        self,
        method: aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float | None,
    ) -> AsyncGenerator[Response]:
        """Yield a stream's messages, and end the call when the iterator is closed.

        Raises:
            AioRpcError: for `retrying`, or for whoever knows where to go on.
        """
        call = method(request, timeout=timeout_s, metadata=self.metadata)
        try:
            async for response in call:
                yield response
        finally:
            call.cancel()


def _in_doubt(error: errors.TorporError, unanswered: bool) -> errors.TorporError:
    if not (unanswered and isinstance(error, errors.REFUSALS)):
        return error
    return errors.OutcomeUnknown(
        f"an earlier attempt was not answered, and may have done it; then: {error.message}",
        **error.ids,
    )
