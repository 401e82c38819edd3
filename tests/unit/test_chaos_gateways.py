"""The battery's client goes from gateway to gateway: one that is broken is not asked again next."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from torpor import client, errors
from torpor.testing import recording, scripted_gateway, witness_client
from torpor.testing.recording import Ending

#: Enough that chance alone would ask one gateway twice in a row.
ATTEMPTS = 12


@contextlib.asynccontextmanager
async def asking(
    gateways: list[scripted_gateway.ScriptedGateway],
) -> AsyncIterator[witness_client.Client]:
    """Yield a client of these gateways, none of which can answer."""
    async with contextlib.AsyncExitStack() as stack:
        for gateway in gateways:
            for method in ("GetSession", "ListEvents"):
                gateway.script[method] = [errors.StoreUnavailable()]
            await gateway.start()
            stack.push_async_callback(gateway.stop)
        yield await stack.enter_async_context(
            witness_client.Client(
                tenant="red",
                gateways=[gateway.address for gateway in gateways],
                recorder=recording.Recorder(),
                policy=client.Policy(attempts_max=ATTEMPTS, first_s=0.0),
            )
        )


async def test_each_attempt_asks_another_gateway_than_the_last() -> None:
    """Of two gateways each gets every second attempt, whichever was asked for first."""
    gateways = [scripted_gateway.ScriptedGateway() for _ in range(2)]
    async with asking(gateways) as red:
        for first in ("", gateways[1].address):
            done = await red.get("s1", gateway=first)
            assert (done.ending, done.attempts) == (Ending.UNKNOWN, ATTEMPTS)
            assert [len(each.of("GetSession")) for each in gateways] == [ATTEMPTS // 2] * 2
            for each in gateways:
                each.requests.clear()
        assert done.gateway == gateways[0].address
        with pytest.raises(errors.StoreUnavailable):
            await red.read_back("s1")
        assert [len(each.of("ListEvents")) for each in gateways] == [ATTEMPTS // 2] * 2


async def test_the_only_gateway_is_asked_again() -> None:
    """Where there is no other, the last one gets all attempts."""
    gateway = scripted_gateway.ScriptedGateway()
    async with asking([gateway]) as red:
        await red.get("s1")
        assert len(gateway.of("GetSession")) == ATTEMPTS
