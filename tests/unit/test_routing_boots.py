"""Messages that go to processes which are still on their way up, and do not get there."""

from collections.abc import AsyncIterator

import pytest

from torpor import ids
from torpor.actors import protocol
from torpor.router import routing
from torpor.storage import records
from torpor.testing import router_parts


@pytest.fixture
async def parts() -> AsyncIterator[router_parts.RouterParts]:
    """One gateway's parts over three nodes."""
    made = await router_parts.build()
    yield made
    await made.close()


async def test_processes_that_die_before_they_claim_have_handled_nothing(
    parts: router_parts.RouterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is no more to blame than any other, and each process hears it as a new one."""
    activate, deliver = parts.cluster.activate, parts.cluster.deliver
    died: list[protocol.Activate] = []
    policies: list[protocol.BusyPolicy] = []

    async def die(
        node: records.NodeRecord, request: protocol.Activate, *, timeout_s: float
    ) -> protocol.Activated:
        if len(died) == routing.DEATHS_MAX:
            return await activate(node, request, timeout_s=timeout_s)
        died.append(request)
        here = parts.cluster.nodes[node.node]
        return protocol.Activated(
            epoch=request.observed_epoch + 1,
            owner=records.Owner(node=here.name, incarnation=here.incarnation, actor="gone"),
            nonce=ids.nonce(),
        )

    async def note(
        seat: protocol.Seat, request: protocol.Deliver, **fields: float
    ) -> protocol.Delivered:
        policies.append(request.busy)
        return await deliver(seat, request, **fields)

    monkeypatch.setattr(parts.cluster, "activate", die)
    monkeypatch.setattr(parts.cluster, "deliver", note)
    answer = await parts.say("one", "m1", busy=protocol.BusyPolicy.REJECT)
    assert answer.version == 2
    assert {request.observed_epoch for request in died} == {0}
    assert policies == [protocol.BusyPolicy.REJECT] * (routing.DEATHS_MAX + 1)
