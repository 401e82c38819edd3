"""What a client needs to be told to connect."""

import pytest

from torpor import client, errors
from torpor.testing.scripted_gateway import ScriptedGateway
from torpor.v1 import admin_pb2


async def test_a_key_from_a_file_may_end_with_a_line_end() -> None:
    """White space around a key is no part of it."""
    gateway = await ScriptedGateway().start()
    gateway.script["ListNodes"] = [admin_pb2.ListNodesResponse()]
    async with client.connect(gateway.address, api_key="tp_x\n", tenant=" acme") as connected:
        await connected.admin.nodes()
    await gateway.stop()
    assert gateway.metadata["authorization"] == "Bearer tp_x"
    assert gateway.metadata["x-torpor-tenant"] == "acme"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("api_key", "tp_secret\ntp_other"),
        ("api_key", "tp_secret\x00"),
        ("api_key", "tp_sécret"),
        ("tenant", "ac\nme"),
        ("address", ""),
        ("address", "localhost"),
        ("address", "http://localhost:7420"),
        ("address", "localhost:99999"),
        ("address", "a b:7420"),
    ],
)
async def test_what_cannot_be_sent_is_refused_before(field: str, value: str) -> None:
    """Values that gRPC chokes on are refused by name, and a key is not shown."""
    given = {"address": "localhost:1", field: value}
    with pytest.raises(errors.InvalidField) as caught:
        async with client.connect(**given):
            pass
    assert caught.value.ids == {"field": field}
    assert "secret" not in caught.value.message
