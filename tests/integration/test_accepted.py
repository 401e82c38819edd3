"""Messages that are accepted and not awaited: handled once, whatever happens in between."""

import asyncio

import pytest
from shared_cluster import SLOW_S, Cluster, Gate, events

from torpor import client, errors, ids, limits, messages
from torpor.router import fields
from torpor.storage import records
from torpor.testing.eventually import assert_eventually

#: Every gateway looks at each hint about twice a minute.
SWEEP_S = 90.0


async def _handled(session: client.Session, *request_ids: str, within_s: float = SLOW_S) -> None:
    """Wait until all were answered; assert that each was once, and in this order."""

    async def all_answered() -> bool:
        return len(await _answers(session)) >= len(request_ids)

    await assert_eventually(all_answered, within_s)
    assert await _answers(session) == list(request_ids)


async def _answers(session: client.Session) -> list[str]:
    return [event.data["request_id"] for event in await events(session, messages.AGENT_MESSAGE)]


async def test_accepted_wakes_and_is_handled(session: client.Session) -> None:
    """A new session is woken for what it was sent; the same post again adds nothing."""
    first = await session.post("self.n = 1", request_id="a")
    again = await session.post("self.n = 1", request_id="a")
    assert (first.repeated, again.repeated) == (False, True)
    await _handled(session, "a")
    reply = await session.send("return str(self.n)", request_id="b")
    assert reply.text == "1"
    await _handled(session, "a", "b")


async def test_accepted_while_evicted(session: client.Session) -> None:
    """What is posted to a sleeping session is handled once, in order, with its old state."""
    await session.send("self.seen = []", request_id="0")
    await session.evict()
    for request_id in "abc":
        await session.post(f"self.seen.append({request_id!r})", request_id=request_id)
    await _handled(session, "0", "a", "b", "c")
    assert (await session.send("return ''.join(self.seen)")).text == "abc"


async def test_accepted_reply_can_be_fetched(session: client.Session) -> None:
    """Sending with the id of a posted message returns that message's reply, not a second turn."""
    await session.post("return 'once'", request_id="a")
    reply = await session.send("return 'once'", request_id="a")
    assert reply.text == "once"
    await _handled(session, "a")


async def test_message_that_kills_is_given_up(session: client.Session) -> None:
    """A message that ends every process is given up after some, and those behind it are handled."""
    await session.send("self.n = 1")
    await session.evict()
    await session.post("import os; os._exit(1)", request_id="poison")
    await session.post("self.n += 1", request_id="good")

    async def given_up() -> bool:
        return bool(await events(session, messages.AGENT_ERROR))

    await assert_eventually(given_up, 3 * SWEEP_S)
    error, *others = await events(session, messages.AGENT_ERROR)
    assert not others
    assert error.data["request_id"] == "poison"
    assert error.data["reason"] == errors.MessageGivenUp.reason
    assert (await session.send("return str(self.n)")).text == "2"


async def test_accepted_during_a_turn(session: client.Session, gate: Gate) -> None:
    """What is posted in the middle of a turn waits for its end, also when that turn is evicted."""
    turn = asyncio.create_task(session.send(f"self.seen = []; {gate.code}", request_id="0"))
    await gate.reached()
    await session.post("self.seen.append('a')", request_id="a")
    leaving = asyncio.create_task(session.evict())
    gate.open()
    await asyncio.gather(turn, leaving)
    await _handled(session, "0", "a")


async def test_accepted_while_paused(session: client.Session) -> None:
    """A paused session keeps what it is sent until it is resumed, asleep or not."""
    await session.send("self.n = 1", request_id="0")
    await session.pause()
    await session.post("self.n += 1", request_id="a")
    await session.evict()
    await session.post("self.n += 1", request_id="b")
    assert await _answers(session) == ["0"]
    await session.resume()
    await _handled(session, "0", "a", "b")
    assert (await session.send("return str(self.n)")).text == "3"


async def test_gateway_dies_before_waking(cluster: Cluster, session: client.Session) -> None:
    """The gateway that accepted a message dies at once: another one's sweep wakes the session."""
    await session.send("self.n = 1", request_id="0")
    await session.evict()
    message = messages.Message(text="self.n += 1", request_id="a")
    # What a gateway does before it acknowledges, and nothing of what it does afterwards.
    key = cluster.key(session)
    await cluster.store.wake.ensure(key)
    await cluster.store.sessions.enqueue(
        key, records.InboxItem(message=message, body_digest=fields.body_digest(message), at_ms=0)
    )
    await _handled(session, "0", "a", within_s=SWEEP_S)


async def test_inbox_is_bounded(cluster: Cluster, session: client.Session) -> None:
    """A paused session's inbox fills up: the next post is refused and leaves no trace."""
    await session.pause()
    key = cluster.key(session)
    message = messages.Message(text="pass")
    posted = []
    for _ in range(limits.INBOX_MAX):
        request_id = ids.random_id("req")
        posted.append(request_id)
        item = records.InboxItem(
            message=messages.Message(text="pass", request_id=request_id),
            body_digest=fields.body_digest(message),
            at_ms=0,
        )
        await cluster.store.sessions.enqueue(key, item)
    with pytest.raises(errors.InboxFull):
        await session.post("pass", request_id="too-much", timeout_s=5.0)
    waiting = await cluster.store.sessions.inbox(key)
    assert [item.message.request_id for item in waiting] == posted
