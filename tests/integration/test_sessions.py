"""A session as its user sees it: it answers, sleeps, and wakes exactly where it was."""

from shared_cluster import Cluster, events, texts

from torpor import client, messages
from torpor.testing.eventually import assert_eventually


async def test_session_answers_and_remembers(cluster: Cluster, session: client.Session) -> None:
    """Turns change state, files and history; versions and seqs have no gaps."""
    first = await session.send("self.n = 41; open('f.txt', 'w').write('abc'); return 'set'")
    second = await session.send("self.n += 1; return str(self.n) + open('f.txt').read()")
    assert (first.text, second.text) == ("set", "42abc")
    assert second.version == first.version + 1
    happened = await events(session)
    assert [event.seq for event in happened] == list(range(1, second.seq + 1))
    assert [event.type for event in happened] == [
        messages.SESSION_CREATED,
        messages.SESSION_WOKEN,
        messages.USER_MESSAGE,
        messages.AGENT_MESSAGE,
        messages.USER_MESSAGE,
        messages.AGENT_MESSAGE,
    ]
    info = await session.get()
    assert (info.version, info.last_seq, info.usage.turns) == (second.version, second.seq, 2)


async def test_evicted_session_wakes_where_it_was(
    cluster: Cluster, session: client.Session
) -> None:
    """Variables, files and history are the same after eviction; the wake is in the history."""
    await session.send("self.n = 41; open('f.txt', 'w').write('abc')")
    before = await events(session)
    asleep = await session.evict()
    assert not asleep.resident
    assert await events(session) == before
    reply = await session.send("return f'{self.n} {open(\"f.txt\").read()}'")
    assert reply.text == "41 abc"
    after = await events(session)
    assert after[: len(before)] == before
    woken = [event for event in after if event.type == messages.SESSION_WOKEN]
    assert [event.data["epoch"] for event in woken] == [1, 2]
    assert woken[-1].data["node"] == await cluster.home(session)
    assert texts(await events(session, messages.AGENT_MESSAGE))[-1] == "41 abc"


async def test_evicting_twice_is_no_error(session: client.Session) -> None:
    """Evicting a sleeping session, also one that was never awake, changes nothing."""
    assert not (await session.evict()).resident
    await session.send("pass")
    first = await session.evict()
    assert await session.evict() == first


async def test_idle_session_leaves_by_itself(cluster: Cluster) -> None:
    """A session that is left alone for its agent's idle time is evicted, and wakes as it was."""
    session = await cluster.client.sessions.create("restless")
    await session.send("self.n = 1")

    async def asleep() -> bool:
        return not (await session.get()).resident

    await assert_eventually(asleep)
    assert (await session.send("return str(self.n)")).text == "1"
    assert (await session.get()).epoch == 2
    await session.delete()
