"""Slots: forked where the node can, up before they are needed, bound once."""

import asyncio
import os
import pathlib
import signal

from shared_cluster import SLOW_S, Cluster, events

from torpor import client, messages
from torpor.testing.eventually import assert_eventually

#: Tells of the process that runs it.
WHO = """
import os
import torpor
server = os.environ.get("TORPOR_FORKED_BY", "")
return torpor.Reply(data={"pid": os.getpid(), "server": server, "leader": os.getsid(0)})
"""
#: Tells what the process has imported since it was forked.
NEWS = """
import sys
import torpor
from torpor.actors.ray_compat import fork_server
return torpor.Reply(data={"news": sorted(set(sys.modules) - fork_server.inherited)})
"""


async def test_a_session_is_forked_and_leads_its_own_group(session: client.Session) -> None:
    """The raylet ends workers by their groups, so each has one of its own."""
    told = (await session.send(WHO)).data
    assert told["leader"] == told["pid"]
    assert "fork_server" in _command(told["server"])
    assert _parent(told["pid"]) == int(told["server"])


async def test_nothing_is_imported_after_the_fork(session: client.Session) -> None:
    """What a session needs its fork server has: memory is shared, and no wake waits for imports."""
    await session.send("return str(1)")
    assert (await session.send(NEWS)).data["news"] == []


async def test_every_activation_has_a_process_of_its_own(session: client.Session) -> None:
    """No slot is bound twice."""
    pids = []
    for _ in range(4):
        pids.append((await session.send(WHO)).data["pid"])
        await session.evict()
    assert len(set(pids)) == 4


async def test_a_fork_server_that_was_killed(session: client.Session) -> None:
    """Its children live on, also in stock; wakes that come too early for a new one are slower."""
    told = (await session.send(WHO)).data
    os.kill(int(told["server"]), signal.SIGKILL)
    assert (await session.send(WHO)).data["pid"] == told["pid"]
    for _ in range(3):
        await session.evict()
        _empty_stock()
        again = (await session.send(WHO)).data
        assert again["pid"] != told["pid"]
        if again["server"] not in ("", told["server"]):
            break
    assert again["server"] not in ("", told["server"])


async def test_slots_that_died_in_stock(cluster: Cluster, session: client.Session) -> None:
    """A process that is killed before it is bound is not handed out."""
    await session.send("return str(1)")
    await session.evict()
    await _stocked(cluster)
    _empty_stock()
    assert (await session.send("return str(2)")).text == "2"


async def test_two_gateways_wake_one_session(cluster: Cluster, session: client.Session) -> None:
    """Both bind a slot, one claims: the turns of both run once each, in one process."""
    await session.send("return str(1)")
    await session.evict()
    handles = [each.sessions.handle(session.id) for each in cluster.clients[:2]]
    replies = await asyncio.gather(*(each.send(WHO) for each in handles))
    assert len({reply.data["pid"] for reply in replies}) == 1
    woken = [each for each in await events(session) if each.type == messages.SESSION_WOKEN]
    assert len(woken) == 2


async def _stocked(cluster: Cluster) -> None:
    async def some() -> bool:
        return any(node.slots_in_stock for node in await cluster.client.admin.nodes())

    await assert_eventually(some, SLOW_S)


def _empty_stock() -> None:
    """Kill every session process that holds no session."""
    for command in pathlib.Path("/proc").glob("[0-9]*/comm"):
        try:
            name = _command(command.parent.name)
            folder = (command.parent / "cwd").readlink()
        except OSError:
            continue
        if "AgentSession" in name and folder.name != "workspace":
            os.kill(int(command.parent.name), signal.SIGKILL)


def _command(pid: str) -> str:
    return pathlib.Path(f"/proc/{pid}/cmdline").read_text()


def _parent(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
