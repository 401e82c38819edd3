"""Two tenants with sessions of the same id never meet."""

import pytest
from shared_cluster import OTHER_TENANT, Cluster

import torpor
from torpor import client, errors, ids


async def test_tenants_never_meet(cluster: Cluster, other_client: client.Client) -> None:
    """State, files, history, logs and lists of one tenant do not show in the other's."""
    name = ids.random_id("same")
    ours = await cluster.client.sessions.create("puppet", session_id=name)
    theirs = await other_client.sessions.create("puppet", session_id=name)
    for session, word in ((ours, "ours"), (theirs, "theirs")):
        await session.send(
            f"print({word!r}); self.word = {word!r}; open('f', 'w').write({word!r})",
            request_id="same",
        )
    for session, word in ((ours, "ours"), (theirs, "theirs")):
        again = await session.send("return self.word + open('f').read()")
        assert again.text == word + word
        assert await session.files.read("f") == word.encode()
        assert await session.logs() == f"{word}\n".encode()
        history = [event async for event in session.events()]
        assert not any(("theirs" if word == "ours" else "ours") in str(event) for event in history)
    await ours.evict()
    assert (await theirs.get()).resident
    await ours.delete()
    assert (await theirs.send("return self.word")).text == "theirs"
    assert [info.tenant async for info in other_client.sessions.list()] == [OTHER_TENANT]
    await theirs.delete()


async def test_agents_belong_to_a_tenant(cluster: Cluster, other_client: client.Client) -> None:
    """An agent that one tenant registered is unknown to the other."""
    with pytest.raises(errors.AgentNotFound):
        await other_client.sessions.create("frugal")
    names = [agent.name async for agent in other_client.agents.list()]
    assert names == ["puppet"]


async def test_operator_acts_for_a_tenant(cluster: Cluster, other_client: client.Client) -> None:
    """An operator may name another tenant; a tenant's own key may not."""
    theirs = await other_client.sessions.create("puppet")
    await theirs.send("self.n = 1")
    address, key = cluster.addresses[0], cluster.here.api_key
    async with torpor.connect(address, api_key=key, tenant=OTHER_TENANT) as operator:
        assert (await operator.sessions.handle(theirs.id).send("return str(self.n)")).text == "1"
    with pytest.raises(errors.SessionNotFound):
        await cluster.client.sessions.handle(theirs.id).get()
    await theirs.delete()


async def test_key_names_another_tenant(
    cluster: Cluster, other_key: str, session: client.Session
) -> None:
    """A tenant's key with another tenant's name is refused, before anything is looked up."""
    address = cluster.addresses[0]
    async with torpor.connect(address, api_key=other_key, tenant="dev") as nosy:
        for call in (nosy.sessions.handle(session.id).get(), nosy.sessions.create("puppet")):
            with pytest.raises(errors.OperatorOnly):
                await call
