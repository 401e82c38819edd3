"""Nodes: listed with their load, drained, and left out of placement."""

import asyncio

from shared_cluster import Cluster, Gate

from torpor.testing.eventually import assert_eventually


async def test_nodes_are_listed(cluster: Cluster) -> None:
    """Every node is there with its gateway and a load that counts its sessions."""
    session = await cluster.client.sessions.create("puppet")
    await session.send("pass")
    home = await cluster.home(session)

    async def counted() -> bool:
        nodes = {node.name: node for node in await cluster.client.admin.nodes()}
        assert {"node-1", "node-2", "node-3"} <= set(nodes)
        assert all(node.alive and not node.draining for node in nodes.values())
        assert [nodes[f"node-{i}"].gateway for i in (1, 2, 3)] == list(cluster.addresses)
        return nodes[home].sessions >= 1

    await assert_eventually(counted)
    await session.delete()


async def test_drained_node_empties(cluster: Cluster) -> None:
    """Sessions leave a drained node, wake elsewhere as they were, and none comes back to it."""
    name = await cluster.add_node()
    sessions = []
    for number in range(2):
        session = await cluster.client.sessions.create("puppet")
        await cluster.take_to(session, name)
        await session.send(f"self.n = {number}; open('f', 'w').write(str(self.n))")
        sessions.append(session)
    drained = await cluster.client.admin.drain(name)
    assert (drained.name, drained.draining, drained.sessions) == (name, True, 0)
    for number, session in enumerate(sessions):
        assert not (await session.get()).resident
        reply = await session.send("return f'{self.n} ' + open('f').read()")
        assert reply.text == f"{number} {number}"
        assert await cluster.home(session) != name
    fresh = [await cluster.client.sessions.create("puppet") for _ in range(3)]
    for session in fresh:
        await session.send("pass")
        assert await cluster.home(session) != name
    for session in (*sessions, *fresh):
        await session.delete()
    await cluster.lose(name)


async def test_drain_waits_for_the_turn(cluster: Cluster, gate: Gate) -> None:
    """A turn under way on a drained node ends and is committed before its session leaves."""
    name = await cluster.add_node()
    session = await cluster.client.sessions.create("puppet")
    await cluster.take_to(session, name)
    turn = asyncio.create_task(session.send(f"self.n = 1; {gate.code}; return 'done'"))
    await gate.reached()
    draining = asyncio.create_task(cluster.client.admin.drain(name))

    async def begun() -> bool:
        return any(
            node.name == name and node.draining for node in await cluster.client.admin.nodes()
        )

    await assert_eventually(begun)
    assert await cluster.home(session) == name
    gate.open()
    assert (await turn).text == "done"
    assert (await draining).sessions == 0
    assert len(gate.pids()) == 1
    assert (await session.send("return str(self.n)")).text == "1"
    await session.delete()
    await cluster.lose(name)
