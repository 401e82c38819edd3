"""Errors as gRPC statuses and back: the one table, and what a status carries besides its code.

A status carries `google.rpc.Status` with `ErrorInfo` (the error's reason, the domain `torpor`, its
ids) and, where the same request may be sent again, `RetryInfo` (how long to wait before).
"""

from typing import NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from torpor import errors

#: Of `ErrorInfo`: whose reasons these are.
DOMAIN = "torpor"
#: Where gRPC keeps `google.rpc.Status`, by convention of all its languages.
DETAILS_KEY = "grpc-status-details-bin"
#: A status travels in HTTP headers, percent-encoded and again in base64; gRPC may refuse headers of
#: more than 8 KiB. A message of this size and a few ids stay below that even if no byte is ASCII.
MESSAGE_BYTES_MAX = 1_000
ID_BYTES_MAX = 256
#: In place of what is left out of a message.
_GAP = b" [...] "
#: What gRPC for asyncio says in place of the gateway's answer, if that comes while the client still
#: sends (https://github.com/grpc/grpc/issues/36066). Asked again, it mostly comes in time.
_ANSWER_LOST = "Internal error from Core"


class Row(NamedTuple):
    """How one branch of the error tree looks in gRPC."""

    code: grpc.StatusCode
    #: The least wait before the same request is sent again, if it is retryable.
    retry_after_s: float = 0.0


#: One row for each class of the tree's second level; subclasses inherit it.
TABLE: dict[type[errors.TorporError], Row] = {
    errors.InvalidArgument: Row(grpc.StatusCode.INVALID_ARGUMENT),
    errors.NotFound: Row(grpc.StatusCode.NOT_FOUND),
    errors.AlreadyExists: Row(grpc.StatusCode.ALREADY_EXISTS),
    errors.FailedPrecondition: Row(grpc.StatusCode.FAILED_PRECONDITION),
    errors.Unauthenticated: Row(grpc.StatusCode.UNAUTHENTICATED),
    errors.PermissionDenied: Row(grpc.StatusCode.PERMISSION_DENIED),
    # A queue needs the time of a turn to shrink.
    errors.ResourceExhausted: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, 0.2),
    errors.Aborted: Row(grpc.StatusCode.ABORTED, 0.02),
    errors.Unavailable: Row(grpc.StatusCode.UNAVAILABLE, 0.1),
    errors.DataLoss: Row(grpc.StatusCode.DATA_LOSS),
    errors.DeadlineExceeded: Row(grpc.StatusCode.DEADLINE_EXCEEDED),
    # The code for "somebody else's error": torpor did its part, the agent's code did not.
    errors.TurnFailed: Row(grpc.StatusCode.UNKNOWN),
    errors.Internal: Row(grpc.StatusCode.INTERNAL),
}

#: What a bare code means, when whoever sent it was not torpor: gRPC itself, or a proxy.
_BARE: dict[grpc.StatusCode, type[errors.TorporError]] = {
    **{row.code: branch for branch, row in TABLE.items()},
    # A handler that broke without saying how.
    grpc.StatusCode.UNKNOWN: errors.Internal,
    # A gateway that ends cancels what is under way.
    grpc.StatusCode.CANCELLED: errors.Unavailable,
}


class Status(NamedTuple):
    """What `ServicerContext.abort` takes, in this order."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


class Failure(NamedTuple):
    """A failed call, as a client sees it."""

    error: errors.TorporError
    #: The least wait before the same request is sent again; only meaningful if it is retryable.
    retry_after_s: float


def row(error: errors.TorporError) -> Row:
    """Return the row of the nearest class that has one; `Internal`'s for the base class."""
    return next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), TABLE[errors.Internal])


def to_status(error: errors.TorporError) -> Status:
    """Return the status to abort a call with: `await context.abort(*status.to_status(error))`."""
    code, retry_after_s = row(error)
    message = _shortened(error.message)
    ids = {name: _cut(value, ID_BYTES_MAX) for name, value in error.ids.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=ids)
    rich = status_pb2.Status(code=code.value[0], message=message, details=[_packed(info)])
    if error.retryable:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_after_s * 1e9))
        rich.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return Status(code, message, ((DETAILS_KEY, rich.SerializeToString()),))


def failure(error: aio.AioRpcError, *, address: str = "") -> Failure:
    """Return what a failed call means; `address` is the gateway's, for the message."""
    rich = _rich(error)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in rich.details:
        # `Unpack` fills the message if the detail is of its type, and leaves it alone if not.
        _ = detail.Unpack(info) or detail.Unpack(retry)
    if info.domain != DOMAIN:
        return Failure(_bare(error, address), 0.0)
    cls = errors.by_reason(info.reason)
    if cls is errors.Internal:
        cls = _by_code(error.code())
    wait_s = retry.retry_delay.ToNanoseconds() / 1e9
    return Failure(cls(rich.message, **info.metadata), wait_s)


def from_rpc_error(error: aio.AioRpcError, *, address: str = "") -> errors.TorporError:
    """Return the error that a failed call stands for: by its reason, else by its code."""
    return failure(error, address=address).error


def _bare(error: aio.AioRpcError, address: str) -> errors.TorporError:
    cls = _BARE.get(error.code(), errors.Internal)
    details = error.details() or error.code().name
    if cls is errors.DeadlineExceeded:
        return errors.DeadlineExceeded()
    if details == _ANSWER_LOST:
        return errors.Unavailable("the gateway ended the call while more was being sent to it")
    if cls is errors.Unavailable:
        where = address or "the address given"
        return errors.Unavailable(
            f"no gateway answers at {where} ({details}); is it running, and is the address right?",
            address=where,
        )
    return cls(f"{error.code().name}: {details}")


def _by_code(code: grpc.StatusCode) -> type[errors.TorporError]:
    return next((branch for branch, row in TABLE.items() if row.code is code), errors.Internal)


def _rich(error: aio.AioRpcError) -> status_pb2.Status:
    for key, value in error.trailing_metadata() or aio.Metadata():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return status_pb2.Status()


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _shortened(message: str) -> str:
    """Return a message that fits: of a long one, as of a traceback, both ends matter."""
    raw = message.encode(errors="replace")
    if len(raw) <= MESSAGE_BYTES_MAX:
        return raw.decode()
    head, tail = raw[: MESSAGE_BYTES_MAX // 4], raw[-MESSAGE_BYTES_MAX * 3 // 4 + len(_GAP) :]
    return head.decode(errors="ignore") + _GAP.decode() + tail.decode(errors="ignore")


def _cut(text: str, bytes_max: int) -> str:
    return text.encode(errors="replace")[:bytes_max].decode(errors="ignore")
