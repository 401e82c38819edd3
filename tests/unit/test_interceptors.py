"""What calls pass on their way in: deadlines and the order of refusals."""

import asyncio
from typing import Any

import grpc
import pytest

from torpor import errors
from torpor.router import call, interceptors
from torpor.testing import clock


class Context:
    """As much of a gRPC context as the guards look at."""

    def __init__(self, left_s: float | None) -> None:
        self._left_s = left_s

    def time_remaining(self) -> float | None:
        """Return what the client has left."""
        return self._left_s


def rpc(*, streaming: bool = False) -> interceptors.Rpc:
    """Return a method."""
    make: Any = (
        grpc.unary_stream_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
    )
    return interceptors.Rpc("/torpor.v1.Sessions/Any", make(None))


@pytest.mark.parametrize(
    ("left_s", "streaming", "expected_s"),
    [
        (None, False, interceptors.DEADLINE_DEFAULT_S),
        (None, True, interceptors.DEADLINE_MAX_S),
        (1e9, False, interceptors.DEADLINE_MAX_S),
        (10.0, False, 10.0),
    ],
)
async def test_every_call_has_a_deadline(
    fake_clock: clock.FakeClock, left_s: float | None, streaming: bool, expected_s: float
) -> None:
    """Missing ones get a default, huge ones are cut, and a little is kept for the answer."""
    guard = interceptors.limit_time(fake_clock)
    context: Any = Context(left_s)
    async with guard(rpc(streaming=streaming), context):
        given_s = call.until.get().left_s()
    assert expected_s - interceptors.MARGIN_MAX_S <= given_s < expected_s


async def test_a_unary_call_ends_at_its_deadline(
    fake_clock: clock.FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that does not watch the time is cut off with a typed error."""
    monkeypatch.setattr(interceptors, "MARGIN_MAX_S", 0.0)
    context: Any = Context(0.001)
    with pytest.raises(errors.DeadlineExceeded):
        async with interceptors.limit_time(fake_clock)(rpc(), context):
            await asyncio.Event().wait()


async def test_a_call_that_fails_makes_room() -> None:
    """Admission counts calls in flight, however they end; watchers are counted elsewhere."""
    guard = interceptors.admit(1)
    context: Any = Context(None)
    with pytest.raises(ZeroDivisionError):
        async with guard(rpc(), context):
            raise ZeroDivisionError
    async with guard(rpc(), context):
        watch = rpc(streaming=True)
        watch.method = interceptors.WATCH_METHOD
        async with guard(watch, context):
            pass
        with pytest.raises(errors.TooManyRequests):
            async with guard(rpc(), context):
                pass
