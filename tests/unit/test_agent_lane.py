"""A node's agent as gateways reach it: by its lane, or by others."""

import pathlib
import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest

from torpor import errors
from torpor.actors import agent_lane, lane_address, lane_calls, protocol
from torpor.storage import records
from torpor.testing import in_process_cluster, store_samples

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
        self.lane = agent_lane.AgentLane(NODE, self.activate)

    async def activate(self, request: protocol.Activate) -> protocol.Activated | protocol.Refusal:
        """Answer."""
        self.asked.append(request)
        if self.refusal is not None:
            return protocol.refuse(self.refusal)
        epoch = request.observed_epoch + 1
        return protocol.Activated(epoch=epoch, owner=store_samples.OWNER, nonce="n")

    def record(self, incarnation: str) -> records.NodeRecord:
        """Return what it announces."""
        return store_samples.node_record(NODE, incarnation=incarnation, lane=self.lane.address)


@pytest.fixture
async def agent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    """An agent in office, in its life "first"."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setattr(lane_address, "sockets_folder", lambda: pathlib.Path(folder, "lanes"))
        made = Agent()
        await made.lane.listen("127.0.0.1")
        made.lane.enter("first")
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
    activated = await reach.activate(agent.record("first"), REQUEST, timeout_s=30)
    assert (activated.epoch, activated.owner) == (3, store_samples.OWNER)
    assert agent.asked == [REQUEST]
    agent.refusal = errors.NodeDraining(node=NODE)
    with pytest.raises(errors.NodeDraining):
        await reach.activate(agent.record("first"), REQUEST, timeout_s=30)


async def test_a_life_that_is_over_is_not_asked_by_lane(
    agent: Agent, reach: lane_calls.LaneCalls
) -> None:
    """A gateway that has not heard of the next one yet takes the other way."""
    agent.lane.enter("second")
    with pytest.raises(errors.NoCapacity, match="by others"):
        await reach.activate(agent.record("first"), REQUEST, timeout_s=30)
    assert (await reach.activate(agent.record("second"), REQUEST, timeout_s=30)).epoch == 3


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
