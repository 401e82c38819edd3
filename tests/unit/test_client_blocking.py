"""The blocking client, and what importing `torpor` costs."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

import torpor
from torpor import errors
from torpor.client import loop
from torpor.testing.scripted_gateway import ScriptedGateway
from torpor.v1 import common_pb2, sessions_pb2


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    """A gateway on a thread of its own, so that the test may block."""
    with loop.background_loop() as background:
        running = background.run(_start())
        yield running
        background.run(running.stop())


async def _start() -> ScriptedGateway:
    return await ScriptedGateway().start()


def test_the_same_surface_blocks(gateway: ScriptedGateway) -> None:
    """Calls return values, errors are raised, generators yield and can be left early."""
    gateway.script["SendMessage"] = [
        sessions_pb2.SendMessageResponse(text="42", stop_reason=sessions_pb2.STOP_REASON_END_TURN),
        errors.SessionPaused(),
    ]
    gateway.script["ListEvents"] = [
        sessions_pb2.ListEventsResponse(events=[common_pb2.Event(seq=1)], next_after_seq=1),
        sessions_pb2.ListEventsResponse(events=[common_pb2.Event(seq=2)]),
    ]
    gateway.script["WatchEvents"] = [
        [sessions_pb2.WatchEventsResponse(event=common_pb2.Event(seq=n)) for n in (1, 2, 3)]
    ]
    with torpor.connect_sync(gateway.address) as client:
        session = client.sessions.handle("s")
        assert session.send("6 * 7").text == "42"
        with pytest.raises(errors.SessionPaused):
            session.send("again")
        assert [event.seq for event in session.events()] == [1, 2]
        watch = session.watch()
        assert next(watch) == torpor.Event(seq=1, type="", data={}, version=0, at_ms=0)
        watch.close()
        abandoned = session.watch()
        assert next(abandoned)
    abandoned.close()
    clients = [thread for thread in threading.enumerate() if thread.name == "torpor-client"]
    assert len(clients) == 1, "the client's own thread ended, the gateway's is left"


def test_a_coroutine_is_cancelled_when_its_waiter_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in a blocking call does not leave the call running in the background."""
    cancelled = threading.Event()

    async def long_call() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    class Interrupted:
        """A future whose waiter gets Ctrl-C."""

        def __init__(self, future: "asyncio.Future[None]") -> None:
            self.future = future

        def result(self) -> None:
            raise KeyboardInterrupt

        def cancel(self) -> bool:
            return self.future.cancel()

    real = asyncio.run_coroutine_threadsafe
    with loop.background_loop() as background:
        monkeypatch.setattr(
            asyncio, "run_coroutine_threadsafe", lambda *args: Interrupted(real(*args))
        )
        with pytest.raises(KeyboardInterrupt):
            background.run(long_call())
        assert cancelled.wait(timeout=10)


def test_importing_torpor_stays_light() -> None:
    """Session processes import `torpor`; neither gRPC nor pydantic nor Ray comes with it."""
    heavy = {"grpc", "pydantic", "ray", "redis", "typer", "rich", "google.protobuf"}
    program = f"import sys, torpor; print(sorted({heavy!r} & set(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
