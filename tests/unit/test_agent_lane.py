"""A node's agent as gateways reach it: by its lane, or by others."""

import asyncio
import pathlib
import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest

from torpor import errors
from torpor.actors import agent_lane, lane, lane_address, lane_calls, protocol
from torpor.storage import records
from torpor.testing import eventually, in_process_cluster, store_samples

NODE = "node-1"
REQUEST = protocol.Activate(
    key=records.SessionKey("acme", "chat"),
    observed_epoch=2,
    observed_incarnation="",
    agent=store_samples.agent_version("notebook", "digest"),
    deadline_s=60.0,
)


class Others(in_process_cluster.InProcessCluster):
    """The way by Ray: says no."""

    def __init__(self) -> None:
        """Nothing is there."""

    async def activate(self, *_: object, **__: object) -> protocol.Activated:
        """Refuse."""
        raise errors.NoCapacity("by others")


class Agent:
    """A node's agent that wakes every session, or refuses to."""

    def __init__(self) -> None:
        self.asked: list[protocol.Activate] = []
        self.refusal: errors.TorporError | None = None
        #: Awaited before an answer.
        self.gate: asyncio.Event | None = None
        self.lane = agent_lane.AgentLane(NODE, self.activate)

    async def activate(self, request: protocol.Activate) -> protocol.Activated | protocol.Refusal:
        """Answer."""
        self.asked.append(request)
        if self.gate is not None:
            await self.gate.wait()
        if self.refusal is not None:
            return protocol.refuse(self.refusal)
        epoch = request.observed_epoch + 1
        return protocol.Activated(epoch=epoch, owner=store_samples.OWNER, nonce="n")

    def connections(self) -> set[object]:
        """Return who has come in."""
        assert self.lane._server is not None
        return {each for each in self.lane._server.connections if each._proven}

    def record(self) -> records.NodeRecord:
        """Return what it announces."""
        return store_samples.node_record(NODE, lane=self.lane.address, agent_nonce=self.lane.nonce)


@pytest.fixture
async def agent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    """An agent in office."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setattr(lane_address, "sockets_folder", lambda: pathlib.Path(folder, "lanes"))
        made = Agent()
        await made.lane.listen("127.0.0.1")
        made.lane.enter()
        yield made
        made.lane.close()


@pytest.fixture(params=[NODE, "node-2"])
def reach(request: pytest.FixtureRequest) -> Iterator[lane_calls.LaneCalls]:
    """Calls of a gateway on the same node, and on another."""
    made = lane_calls.LaneCalls(Others(), request.param)
    yield made
    made.close()


async def test_a_session_is_woken_by_lane(agent: Agent, reach: lane_calls.LaneCalls) -> None:
    """What is asked and answered is the same as by Ray, refusals, too."""
    activated = await reach.activate(agent.record(), REQUEST, timeout_s=30)
    assert (activated.epoch, activated.owner) == (3, store_samples.OWNER)
    assert agent.asked == [REQUEST]
    agent.refusal = errors.NodeDraining(node=NODE)
    with pytest.raises(errors.NodeDraining):
        await reach.activate(agent.record(), REQUEST, timeout_s=30)


async def test_a_term_that_is_over_is_not_asked_by_lane(
    agent: Agent, reach: lane_calls.LaneCalls
) -> None:
    """A gateway that has not heard of the next one yet takes the other way, also if it was in."""
    before = agent.record()
    assert (await reach.activate(before, REQUEST, timeout_s=30)).epoch == 3
    (former,) = agent.connections()
    agent.lane.enter()
    await eventually.until(lambda: former not in agent.connections())
    with pytest.raises(errors.NoCapacity, match="by others"):
        await reach.activate(before, REQUEST, timeout_s=30)
    assert (await reach.activate(agent.record(), REQUEST, timeout_s=30)).epoch == 3
    assert len(agent.connections()) == 1


async def test_many_calls_of_one_gateway_are_all_heard(
    agent: Agent, reach: lane_calls.LaneCalls
) -> None:
    """What is too much the agent says; one tenant's calls do not keep it from hearing another's."""
    agent.gate = asyncio.Event()
    count = 2 * lane.CALLS_MAX + 1
    calls = [
        asyncio.create_task(reach.activate(agent.record(), REQUEST, timeout_s=30))
        for _ in range(count)
    ]
    await eventually.until(lambda: len(agent.asked) == count)
    agent.gate.set()
    assert len(await asyncio.gather(*calls)) == count


async def test_too_many_calls_are_for_another_node(
    agent: Agent, reach: lane_calls.LaneCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks the next node knows that nothing was sent to this one."""
    monkeypatch.setattr(agent_lane, "CALLS_MAX", 1)
    agent.gate = asyncio.Event()
    first = asyncio.create_task(reach.activate(agent.record(), REQUEST, timeout_s=30))
    await eventually.until(lambda: agent.asked)
    with pytest.raises(errors.NoCapacity, match="asked for too much"):
        await reach.activate(agent.record(), REQUEST, timeout_s=30)
    agent.gate.set()
    await first


async def test_an_agent_without_a_lane(reach: lane_calls.LaneCalls) -> None:
    """One that cannot listen, or was told not to, is asked by others."""
    with pytest.raises(errors.NoCapacity, match="by others"):
        await reach.activate(store_samples.node_record(NODE), REQUEST, timeout_s=30)


async def test_an_agent_that_cannot_listen_has_no_address() -> None:
    """The address is another machine's."""
    agent = Agent()
    await agent.lane.listen("192.0.2.1")
    assert agent.lane.address == ""
    agent.lane.close()
