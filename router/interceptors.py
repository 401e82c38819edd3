"""What every call passes before it reaches a service: errors, identity, deadline, admission."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import grpc
from google.protobuf import message

from torpor import clock, errors, ids, status
from torpor.router import auth, call, deadline

log = logging.getLogger(__name__)

#: Of unary calls whose client sets none, so that nothing waits for ever.
DEADLINE_DEFAULT_S = 60.0
#: Longer ones are cut: past this, a client should send without awaiting, and watch.
DEADLINE_MAX_S = 3_600.0
#: This share of the time, but not more than so many seconds, is kept for telling the client.
MARGIN_SHARE = 0.05
MARGIN_MAX_S = 0.25

#: Health and reflection are open to everybody and bounded by nothing of ours.
GUARDED_PREFIX = "/torpor."
#: Watchers last for hours and have a bound of their own.
WATCH_METHOD = "/torpor.v1.Sessions/WatchEvents"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Rpc:
    """One method, as guards see it."""

    def __init__(self, method: str, handler: Handler) -> None:
        self.method = method
        self.response_streaming = bool(handler.response_streaming)


Guard = Callable[[Rpc, Context], AbstractAsyncContextManager[None]]


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Runs every call of ours inside one guard."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._guarded: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler, wrapped; a method has the same handler each time."""
        method = handler_call_details.method
        handler = self._guarded.get(method)
        if handler is None:
            handler = await continuation(handler_call_details)
            if handler is None or not method.startswith(GUARDED_PREFIX):
                return handler
            handler = self._guarded[method] = _guarded(handler, self._guard, method)
        return handler


def _guarded(handler: Handler, guard: Guard, method: str) -> Handler:
    rpc = Rpc(method, handler)
    inner: Any = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )

    checked = _all_decoded if handler.request_streaming else _decoded

    async def answer(request: Any, context: Context) -> Any:
        async with guard(rpc, context):
            return await inner(checked(request), context)

    async def answer_stream(request: Any, context: Context) -> AsyncIterator[Any]:
        async with (
            guard(rpc, context),
            contextlib.aclosing(inner(checked(request), context)) as responses,
        ):
            async for response in responses:
                yield response

    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), rpc.response_streaming]
    return make(  # type: ignore[no-any-return]
        answer_stream if rpc.response_streaming else answer,
        _tolerant(handler.request_deserializer),
        handler.response_serializer,
    )


class _Undecodable:
    """In place of a request that is no message of its method.

    gRPC decodes before anybody is asked who calls, and would log each failure at length.
    """

    def __init__(self, why: object) -> None:
        self.why = why


def _tolerant(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    # A handler is wrapped once for each guard.
    if decode is None or getattr(decode, "tolerant", False):
        return decode

    def decode_or_tell(raw: bytes) -> Any:
        try:
            return decode(raw)
        except message.DecodeError as error:
            return _Undecodable(error)

    decode_or_tell.tolerant = True  # type: ignore[attr-defined]
    return decode_or_tell


def _decoded(request: Any) -> Any:
    """Return the request; raise `InvalidField` if it could not be decoded."""
    if isinstance(request, _Undecodable):
        raise errors.InvalidField(
            f"the request is no message of this method: {request.why}", field="request"
        )
    return request


async def _all_decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _decoded(request)


@contextlib.asynccontextmanager
async def tell_errors(rpc: Rpc, context: Context) -> AsyncIterator[None]:
    """Turn errors into statuses; of an unexpected one the client learns only the id in the log."""
    try:
        yield
    except errors.TorporError as error:
        if isinstance(error, errors.Internal):
            log.error("%s: %s", rpc.method, error, extra={"action": "internal_error"})
        await context.abort(*status.to_status(error))
    except grpc.aio.AbortError:
        raise
    except Exception:
        error_id = ids.random_id("error")
        log.exception("%s failed with %s", rpc.method, error_id, extra={"action": "internal_error"})
        unexpected = errors.Internal(
            f"something went wrong inside torpor; the gateway's log has it under {error_id}",
            error=error_id,
        )
        await context.abort(*status.to_status(unexpected))


def authenticate(authenticator: auth.Authenticator) -> Guard:
    """Return the guard that sets the caller's identity."""

    @contextlib.asynccontextmanager
    async def guard(rpc: Rpc, context: Context) -> AsyncIterator[None]:
        metadata: Any = context.invocation_metadata() or ()
        identify = functools.partial(authenticator.identify, metadata)
        call.identity.set(await identify())
        call.identify.set(identify)
        yield

    return guard


def limit_time(time: clock.Clock) -> Guard:
    """Return the guard that sets the call's deadline, and ends a unary call there."""

    @contextlib.asynccontextmanager
    async def guard(rpc: Rpc, context: Context) -> AsyncIterator[None]:
        left_s = context.time_remaining()
        if left_s is None:
            left_s = DEADLINE_MAX_S if rpc.response_streaming else DEADLINE_DEFAULT_S
        left_s = min(left_s, DEADLINE_MAX_S)
        left_s -= min(MARGIN_MAX_S, MARGIN_SHARE * left_s)
        call.until.set(deadline.Deadline.after(time, left_s))
        if rpc.response_streaming:
            yield
            return
        try:
            async with asyncio.timeout(left_s + MARGIN_MAX_S):
                yield
        except TimeoutError:
            raise errors.DeadlineExceeded from None

    return guard


def admit(calls_max: int) -> Guard:
    """Return the guard that refuses calls while `calls_max` others are in flight."""
    in_flight = 0

    @contextlib.asynccontextmanager
    async def guard(rpc: Rpc, context: Context) -> AsyncIterator[None]:
        nonlocal in_flight
        if rpc.method == WATCH_METHOD:
            yield
            return
        if in_flight >= calls_max:
            raise errors.TooManyRequests
        in_flight += 1
        try:
            yield
        finally:
            in_flight -= 1

    return guard
