"""Processes, node agents, gateways and whole nodes die: nothing acknowledged is lost or doubled."""

import asyncio
import os
import signal

import ray
from shared_cluster import SLOW_S, Cluster, Gate, events, texts

from torpor import client, messages
from torpor.testing.eventually import assert_eventually

#: A session that says which process it runs in.
PID = "import os; return str(os.getpid())"


async def test_turn_cut_off_runs_again(session: client.Session, gate: Gate) -> None:
    """Kill -9 in the middle of a turn: its caller still gets the reply, of one turn."""
    await session.send("self.n = 1")
    turn = asyncio.create_task(
        session.send(f"self.n += 1; {gate.code}; return str(self.n)", request_id="cut-off")
    )
    os.kill(await gate.reached(), signal.SIGKILL)
    second = await gate.reached(2)
    gate.open()
    reply = await turn
    assert reply.text == "2"
    assert len(set(gate.pids())) == 2
    assert gate.pids()[1] == second
    for kind in (messages.USER_MESSAGE, messages.AGENT_MESSAGE):
        answered = await events(session, kind)
        assert [event.data["request_id"] for event in answered].count("cut-off") == 1


async def test_killed_after_commit_loses_nothing(session: client.Session) -> None:
    """Kill -9 right after a reply: what the reply said is there."""
    pid = int((await session.send(f"self.n = 1; open('f', 'w').write('x'); {PID}")).text)
    os.kill(pid, signal.SIGKILL)
    assert (await session.send("return f'{self.n} {open(\"f\").read()}'")).text == "1 x"
    assert (await session.get()).epoch == 2


async def test_zombie_is_buried(session: client.Session, gate: Gate) -> None:
    """A stopped process is killed before another takes over: one reply, and no process is left."""
    turn = asyncio.create_task(session.send(f"{gate.code}; return 'one'", timeout_s=60))
    pid = await gate.reached()
    os.kill(pid, signal.SIGSTOP)
    # Somebody else's impatience is what finds out: the first caller would wait for its turn.
    hasty = asyncio.create_task(session.send("return 'two'", timeout_s=2))
    gate.open()
    replies = await asyncio.gather(turn, hasty, return_exceptions=True)
    assert replies[0].text == "one"
    assert (await session.send("return 'three'")).text == "three"
    said = texts(await events(session, messages.AGENT_MESSAGE))
    assert (said.count("one"), said[-1]) == (1, "three")
    assert said.count("two") <= 1
    assert len(gate.pids()) == 2
    _assert_dead(pid)


async def test_lost_node(cluster: Cluster) -> None:
    """A node dies with all its sessions: each answers again elsewhere with all it had said."""
    name = await cluster.add_node()
    sessions = []
    for number in range(3):
        session = await cluster.client.sessions.create("puppet")
        await cluster.take_to(session, name)
        await session.send(f"self.n = {number}; open('f', 'w').write('file {number}')")
        assert await cluster.home(session) == name
        sessions.append(session)
    cluster.here.cluster.kill_node(name)
    replies = await asyncio.gather(
        *(
            session.send("self.n += 10; return f'{self.n} ' + open('f').read()")
            for session in sessions
        )
    )
    assert [reply.text for reply in replies] == ["10 file 0", "11 file 1", "12 file 2"]
    await cluster.forgotten(name)
    for session in sessions:
        woken = await events(session, messages.SESSION_WOKEN)
        assert [event.data["epoch"] for event in woken] == [1, 2]
        assert woken[0].data["node"] == name
        assert woken[1].data["node"] != name
        await session.delete()


async def test_node_agent_killed(cluster: Cluster, session: client.Session) -> None:
    """A node agent dies: its sessions end with it, and wake once its lease is over."""
    pid = int((await session.send(f"self.n = 7; {PID}")).text)
    name = await cluster.home(session)
    before = (await cluster.head(session)).owner
    ray.kill(cluster.node_agent(name))

    async def ended() -> bool:
        return _dead(pid)

    await assert_eventually(ended)
    assert (await session.send("return str(self.n)")).text == "7"
    await cluster.settled()
    assert (await cluster.head(session)).epoch == 2
    records = {view.record.name: view.record for view in await cluster.store.nodes.views()}
    assert records[name].incarnation != before.incarnation
    await session.evict()
    await cluster.take_to(session, name)
    assert (await session.send("return str(self.n)")).text == "7"


async def test_owner_that_does_not_know_it_is_out(
    cluster: Cluster, session: client.Session
) -> None:
    """A node agent stands still past its lease: its sessions are taken over while they still live.

    The former owner answers a gateway that knows nothing yet, and is fenced by its commit. Once
    it goes on, the agent ends that process and comes back as a new incarnation.
    """
    count = "self.n = getattr(self, 'n', 0) + 1; import os; return f'{self.n} {os.getpid()}'"
    old_pid = int((await session.send(count)).text.split()[1])
    name = await cluster.home(session)
    before = (await cluster.head(session)).owner
    agent_pid = await cluster.node_agent(name).__ray_call__.remote(lambda _: os.getpid())
    os.kill(agent_pid, signal.SIGSTOP)
    try:

        async def lapsed() -> bool:
            return not await cluster.store.nodes.lease_stands(before.node, before.incarnation)

        await assert_eventually(lapsed, SLOW_S)
        # A gateway that has never seen the session finds the lease gone.
        newcomer = cluster.clients[1].sessions.handle(session.id)
        moved, new_pid = (await newcomer.send(count)).text.split()
        assert moved == "2"
        assert await cluster.home(session) != name
        assert not _dead(old_pid)
        # The gateway that has seen it calls the former owner first.
        assert (await session.send(count)).text == f"3 {new_pid}"
    finally:
        os.kill(agent_pid, signal.SIGCONT)

    async def back() -> bool:
        views = {view.record.name: view for view in await cluster.store.nodes.views()}
        here = views[name]
        return here.alive and here.record.incarnation != before.incarnation and _dead(old_pid)

    await assert_eventually(back, SLOW_S)
    assert texts(await events(session, messages.AGENT_MESSAGE))[-1] == f"3 {new_pid}"


async def test_gateway_killed(cluster: Cluster, session: client.Session) -> None:
    """A gateway dies: others serve its sessions, and it comes back on its port."""
    await session.send("self.n = 3")
    address = cluster.addresses[0]
    ray.kill(cluster.gateway_actor("node-1"))
    elsewhere = cluster.clients[1].sessions.handle(session.id)
    assert (await elsewhere.send("return str(self.n)")).text == "3"
    await cluster.settled()
    assert cluster.running("node-1").gateway == address
    assert (await session.send("return str(self.n + 1)")).text == "4"


def _dead(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _assert_dead(pid: int) -> None:
    assert _dead(pid), f"process {pid} lives"
