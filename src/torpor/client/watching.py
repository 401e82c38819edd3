"""Following a session's events across whatever happens to connections, gateways and owners."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from grpc import aio

from torpor import errors, messages, status
from torpor.client import decoding, values
from torpor.client.connection import Connection
from torpor.v1 import sessions_pb2

#: Connections in a row that bring nothing, not even a heartbeat. Each comes after a longer wait (up
#: to 5 s): when no gateway answers for that long, whoever watches should hear of it.
FRUITLESS_MAX = 12
#: A gateway that works says something every 15 s; one that hangs may keep its connection open.
SILENCE_MAX_S = 60.0


class Cursor:
    """Where a watcher is: insists that nothing is left out and drops what it has seen."""

    def __init__(self, session_id: str, *, after_seq: int, types: Sequence[str]) -> None:
        self.seq = after_seq
        self._session_id = session_id
        self._filtered = bool(types)

    def accept(self, event: messages.Event) -> bool:
        """Move to the event; False if it was seen before.

        Raises:
            HistoryGap: events between the last one and this one were left out.
        """
        if event.seq <= self.seq:
            return False
        if event.seq != self.seq + 1 and not self._filtered:
            raise errors.HistoryGap(
                f"event {event.seq} came after event {self.seq}",
                session=self._session_id,
                seq=event.seq,
            )
        self.seq = event.seq
        return True

    def pass_by(self, seq: int) -> None:
        """Move to `seq` without an event, when a filter keeps those before it away."""
        if self._filtered:
            self.seq = max(self.seq, seq)


async def watch(
    connection: Connection, session_id: str, *, after_seq: int, types: Sequence[str]
) -> AsyncGenerator[messages.Event | values.Delta]:
    """Yield events with `seq > after_seq` and provisional deltas, without a gap or a repeat.

    Raises:
        TorporError: what cannot be repeated, or the last of `FRUITLESS_MAX` failures in a row.
    """
    cursor = Cursor(session_id, after_seq=after_seq, types=types)
    fruitless = 0
    while True:
        request = sessions_pb2.WatchEventsRequest(
            session_id=session_id, after_seq=cursor.seq, types=types
        )
        # A stream that simply ends is a gateway that stops: another one goes on.
        error: errors.TorporError = errors.Unavailable(address=connection.address)
        least_s = 0.0
        try:
            stream = connection.stream(connection.sessions.WatchEvents, request, timeout_s=None)
            async with aclosing(stream) as responses:
                while (response := await _next(responses)) is not None:
                    fruitless = 0
                    item = _item(response, cursor)
                    if item is not None:
                        yield item
        except aio.AioRpcError as rpc_error:
            error, least_s = status.failure(rpc_error, address=connection.address)
        except errors.Unavailable as silence:
            error = silence
        fruitless += 1
        if not error.retryable or fruitless >= FRUITLESS_MAX:
            raise error
        await connection.clock.sleep(connection.policy.delay_s(fruitless, at_least_s=least_s))


async def _next(
    responses: AsyncGenerator[sessions_pb2.WatchEventsResponse],
) -> sessions_pb2.WatchEventsResponse | None:
    try:
        async with asyncio.timeout(SILENCE_MAX_S):
            return await anext(responses, None)
    except TimeoutError:
        raise errors.Unavailable(
            f"the gateway said nothing for {SILENCE_MAX_S:g} s, not even that it is there"
        ) from None


def _item(
    response: sessions_pb2.WatchEventsResponse, cursor: Cursor
) -> messages.Event | values.Delta | None:
    match response.WhichOneof("item"):
        case "event":
            event = decoding.event(response.event)
            return event if cursor.accept(event) else None
        case "delta":
            return values.Delta(text=response.delta)
        case "heartbeat_seq":
            cursor.pass_by(response.heartbeat_seq)
    return None
