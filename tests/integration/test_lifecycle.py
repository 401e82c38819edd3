"""Pausing, resuming and deleting sessions, awake and asleep."""

import asyncio

import pytest
from shared_cluster import Cluster, Gate, events

from torpor import client, errors, messages
from torpor.testing.eventually import assert_eventually


@pytest.mark.parametrize("asleep", [False, True], ids=["resident", "evicted"])
async def test_pause_and_resume(session: client.Session, *, asleep: bool) -> None:
    """A paused session refuses messages and can be read; resumed, it goes on as it was."""
    await session.send("self.n = 1; open('f', 'w').write('x')")
    if asleep:
        await session.evict()
    assert (await session.pause()).status == "paused"
    assert (await session.pause()).status == "paused"
    with pytest.raises(errors.SessionPaused):
        await session.send("return 'no'")
    assert await session.files.read("f") == b"x"
    assert (await session.resume()).status == "idle"
    assert (await session.resume()).status == "idle"
    assert (await session.send("return str(self.n)")).text == "1"
    types = [event.type for event in await events(session)]
    assert types.count(messages.SESSION_PAUSED) == types.count(messages.SESSION_RESUMED) == 1


async def test_paused_session_can_be_evicted(session: client.Session) -> None:
    """A paused session leaves memory, stays paused, and comes back with its state."""
    await session.send("self.n = 1")
    await session.pause()
    info = await session.evict()
    assert (info.resident, info.status) == (False, "paused")
    with pytest.raises(errors.SessionPaused):
        await session.send("return 'no'")
    assert not (await session.get()).resident
    await session.resume()
    assert (await session.send("return str(self.n)")).text == "1"


@pytest.mark.parametrize("asleep", [False, True], ids=["resident", "evicted"])
async def test_deleted_stays_deleted(
    cluster: Cluster, session: client.Session, *, asleep: bool
) -> None:
    """After deletion every call says so, the process ends, and the id cannot be used again."""
    pid = (await session.send("import os; return str(os.getpid())")).text
    if asleep:
        await session.evict()
    await session.delete()
    await session.delete()
    for call in (
        session.get(),
        session.send("return 'no'"),
        session.post("return 'no'"),
        session.history(),
        session.evict(),
        session.pause(),
        session.resume(),
        session.files.read("f"),
        cluster.client.sessions.create("puppet", session_id=session.id),
    ):
        with pytest.raises(errors.SessionDeleted):
            await call
    listed = [info.id async for info in cluster.client.sessions.list()]
    assert session.id not in listed
    await assert_eventually(lambda: _ended(int(pid)))


async def test_deleted_in_the_middle_of_a_turn(session: client.Session, gate: Gate) -> None:
    """The turn under way is not committed; its caller learns that the session is gone."""
    turn = asyncio.create_task(session.send(f"{gate.code}; return 'too late'"))
    pid = await gate.reached()
    await session.delete()
    gate.open()
    with pytest.raises(errors.SessionDeleted):
        await turn
    await assert_eventually(lambda: _ended(pid))


async def test_paused_in_the_middle_of_a_turn(session: client.Session, gate: Gate) -> None:
    """The turn under way ends as usual; what comes after the pause is refused."""
    turn = asyncio.create_task(session.send(f"self.n = 1; {gate.code}; return 'done'"))
    await gate.reached()
    pausing = asyncio.create_task(session.pause())
    gate.open()
    assert (await turn).text == "done"
    assert (await pausing).status == "paused"
    with pytest.raises(errors.SessionPaused):
        await session.send("return 'no'")
    await session.resume()
    assert (await session.send("return str(self.n)")).text == "1"


async def _ended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: ASYNC230, PTH123 - one line of /proc
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_create_is_idempotent(cluster: Cluster) -> None:
    """The same request id returns the session that it made; another one is told it exists."""
    first = await cluster.client.sessions.create("puppet", request_id="make-me")
    again = await cluster.client.sessions.create("puppet", request_id="make-me")
    assert first.id == again.id
    with pytest.raises(errors.SessionExists):
        await cluster.client.sessions.create("puppet", session_id=first.id)
    await first.delete()
