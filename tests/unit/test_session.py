"""The shell of a session process, without Ray."""

import asyncio
from typing import Any

import pytest

from torpor import errors, messages
from torpor.actors import mailbox, protocol, session
from torpor.testing import activations

EPOCH = 3


class Resident:
    """A residence that takes work and never gets to it."""

    epoch = EPOCH

    def __init__(self) -> None:
        self.mailbox = mailbox.Mailbox("chat")

    def put(self, work: mailbox.Work, **how: Any) -> mailbox.Job:
        """Queue it."""
        return self.mailbox.put(work, **how)

    async def run(self) -> None:
        """Answer everything but looks into the inbox."""
        while True:
            job = await self.mailbox.take()
            job.resolve(protocol.Delivered(text="here", data={}, seq=1, version=1))


DELIVER = protocol.pack(
    protocol.Deliver(
        epoch=EPOCH,
        message=messages.Message(text="hello", request_id="r"),
        body_digest="",
        busy=protocol.BusyPolicy.ENQUEUE,
        deadline_s=60.0,
    )
)


@pytest.mark.parametrize("refused", [False, True])
async def test_calls_during_the_boot_await_its_end(
    monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    """Who reads the head after the claim finds the owner still loading: the call waits for it."""
    go = asyncio.Event()

    async def load(_: object) -> Resident:
        await go.wait()
        if refused:
            raise errors.CheckpointCorrupt
        return Resident()

    monkeypatch.setattr(session, "_take_up_residence", load)
    process = session.AgentSession()
    booting = asyncio.create_task(process.boot(activations.AGENT))  # type: ignore[arg-type]
    early = asyncio.create_task(process.deliver(DELIVER))
    drain = asyncio.create_task(process.drain_inbox(EPOCH))
    await asyncio.sleep(0)
    go.set()
    await booting
    answer = protocol.unpack_delivered(await early)
    if refused:
        assert isinstance(answer, protocol.Refusal)
        assert answer.reason == errors.Fenced.reason
    else:
        assert protocol.accept(answer).text == "here"
        assert await drain is None
        assert process._living is not None
        process._living.cancel()
