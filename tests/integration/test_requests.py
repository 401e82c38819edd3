"""Request ids, and messages that find the session busy."""

import asyncio

import pytest
from shared_cluster import Cluster, Gate, events, texts

from torpor import client, errors, limits, messages
from torpor.testing.eventually import assert_eventually

#: Messages beyond what the mailbox holds.
EXTRA = 3
COUNT = "self.n = getattr(self, 'n', 0) + 1; return str(self.n)"


async def _turns(session: client.Session, request_id: str) -> int:
    answers = await events(session, messages.AGENT_MESSAGE)
    return [event.data["request_id"] for event in answers].count(request_id)


async def test_same_request_runs_once(session: client.Session) -> None:
    """The same id again returns the same reply; also from another process."""
    first = await session.send(COUNT, request_id="a")
    again = await session.send(COUNT, request_id="a")
    await session.evict()
    awake = await session.send(COUNT, request_id="a")
    assert not first.repeated
    assert (again.repeated, awake.repeated) == (True, True)
    for reply in (again, awake):
        assert (reply.text, reply.seq, reply.version) == (first.text, first.seq, first.version)
    assert (await session.send(COUNT)).text == "2"


async def test_same_request_to_two_gateways(cluster: Cluster, session: client.Session) -> None:
    """Two gateways asked at once, of a sleeping session: one turn, one reply for both."""
    replies = await asyncio.gather(
        *(each.sessions.handle(session.id).send(COUNT, request_id="a") for each in cluster.clients)
    )
    assert {reply.text for reply in replies} == {"1"}
    assert sorted(reply.repeated for reply in replies) == [False, True, True]
    assert await _turns(session, "a") == 1
    assert (await session.get()).epoch == 1


async def test_same_request_after_history_was_sealed(session: client.Session) -> None:
    """An id is known also when its reply lies in a cold segment."""
    first = await session.send(COUNT, request_id="a")
    emits = f"for i in range({limits.HOT_EVENTS_MAX}): await ctx.emit('test.event', {{'i': i}})"
    await session.send(emits)
    await session.evict()
    again = await session.send(COUNT, request_id="a")
    assert (again.text, again.seq, again.repeated) == (first.text, first.seq, True)
    assert await _turns(session, "a") == 1


async def test_failed_request_stays_failed(session: client.Session) -> None:
    """A turn that failed is not run again for its id: the same error comes back."""
    code = "self.n = 1; raise ValueError('no luck')"
    with pytest.raises(errors.TurnFailed, match="no luck") as first:
        await session.send(code, request_id="a")
    with pytest.raises(errors.TurnFailed, match="no luck") as again:
        await session.send(code, request_id="a")
    assert first.value.ids["seq"] == again.value.ids["seq"]
    assert len(await events(session, messages.AGENT_ERROR)) == 1


async def test_request_id_with_another_body(session: client.Session) -> None:
    """An id that was used for another message is refused, sent or posted, awake or not."""
    await session.send("return 'one'", request_id="a")
    with pytest.raises(errors.RequestIdReused):
        await session.send("return 'two'", request_id="a")
    await session.evict()
    with pytest.raises(errors.RequestIdReused):
        await session.post("return 'two'", request_id="a")
    with pytest.raises(errors.RequestIdReused):
        await session.send("return 'two'", request_id="a")
    assert texts(await events(session, messages.AGENT_MESSAGE)) == ["one"]


async def test_enqueued_messages_wait_for_the_turn(session: client.Session, gate: Gate) -> None:
    """Messages that come during a turn are handled after it, one at a time, each once."""
    held = asyncio.create_task(session.send(f"{gate.code}; self.seen = []; return 'first'"))
    await gate.reached()
    waiting = [
        asyncio.create_task(
            session.send(
                "import asyncio; before = list(self.seen); await asyncio.sleep(0.01)\n"
                f"self.seen = [*before, {name!r}]"
            )
        )
        for name in "abcd"
    ]
    gate.open()
    first, *others = await asyncio.gather(held, *waiting)
    assert sorted(reply.version for reply in others) == [first.version + i for i in range(1, 5)]
    assert (await session.send("return ''.join(sorted(self.seen))")).text == "abcd"


async def test_busy_session_rejects(session: client.Session, gate: Gate) -> None:
    """With `reject` a message is refused in the middle of a turn, and runs between turns."""
    held = asyncio.create_task(session.send(gate.code))
    await gate.reached()
    with pytest.raises(errors.SessionBusy):
        await session.send("return 'now'", busy="reject", request_id="a")
    gate.open()
    await held
    assert (await session.send("return 'now'", busy="reject", request_id="a")).text == "now"
    assert await _turns(session, "a") == 1


async def test_mailbox_is_bounded(cluster: Cluster, session: client.Session, gate: Gate) -> None:
    """As many messages wait as the mailbox holds, and are handled; the rest are refused at once."""
    held = asyncio.create_task(session.send(gate.code))
    await gate.reached()
    once = client.Policy(attempts_max=1)
    async with client.connect(
        cluster.addresses[0], api_key=cluster.here.api_key, policy=once
    ) as impatient:
        handle = impatient.sessions.handle(session.id)
        sends = [asyncio.create_task(handle.send(COUNT)) for _ in range(limits.MAILBOX_MAX + EXTRA)]

        async def refused() -> bool:
            return sum(send.done() for send in sends) == EXTRA

        await assert_eventually(refused)
        gate.open()
        await held
        results = await asyncio.gather(*sends, return_exceptions=True)
    handled = [int(each.text) for each in results if isinstance(each, client.Reply)]
    assert sorted(handled) == list(range(1, limits.MAILBOX_MAX + 1))
    failed = [each for each in results if isinstance(each, BaseException)]
    assert [type(each) for each in failed] == [errors.MailboxFull] * EXTRA
