"""What is wrong is refused with one exact error, and changes nothing."""

import pathlib

import pytest
from shared_cluster import OTHER_TENANT, Cluster, events

import torpor
from torpor import client, errors, ids, limits, messages
from torpor.router import routing


async def _refused(cluster: Cluster, error: type[errors.TorporError], **how: str | None) -> None:
    async with torpor.connect(cluster.addresses[0], **how) as caller:
        with pytest.raises(errors.TorporError) as refused:
            await caller.sessions.handle("any").get()
    assert type(refused.value) is error


async def test_who_calls(cluster: Cluster) -> None:
    """No key, a wrong key, and a tenant that is not there each have an error of their own."""
    key = cluster.here.api_key
    await _refused(cluster, errors.ApiKeyMissing)
    await _refused(cluster, errors.ApiKeyInvalid, api_key=ids.api_key())
    await _refused(cluster, errors.ApiKeyInvalid, api_key=key + "x")
    await _refused(cluster, errors.TenantNotFound, api_key=key, tenant="nobody")
    await _refused(cluster, errors.SessionNotFound, api_key=key, tenant=OTHER_TENANT)


async def test_operators_only(cluster: Cluster, other_client: client.Client) -> None:
    """A key that is no operator's can neither list nor drain nodes."""
    with pytest.raises(errors.OperatorOnly):
        await other_client.admin.nodes()
    with pytest.raises(errors.OperatorOnly):
        await other_client.admin.drain("node-1")
    assert not any(node.draining for node in await cluster.client.admin.nodes())


async def test_unknown_names(cluster: Cluster) -> None:
    """Sessions, agents, versions and nodes that are not there are said to be so."""
    nobody = cluster.client.sessions.handle("nobody")
    for call in (
        nobody.get(),
        nobody.send("pass"),
        nobody.post("pass"),
        nobody.history(),
        nobody.evict(),
        nobody.pause(),
        nobody.delete(),
        nobody.files.read("f"),
        nobody.files.write("f", b""),
        nobody.logs(),
        anext(nobody.watch()),
    ):
        with pytest.raises(errors.SessionNotFound):
            await call
    with pytest.raises(errors.AgentNotFound):
        await cluster.client.sessions.create("nobody")
    with pytest.raises(errors.AgentNotFound):
        await cluster.client.sessions.create("puppet", agent_version=99)
    with pytest.raises(errors.NodeNotFound):
        await cluster.client.admin.drain("nowhere")


@pytest.mark.parametrize(
    "session_id", ["Upper", "a/b", "..", "a..b", "-a", "x" * 64, "a b"], ids=str.strip
)
async def test_invalid_session_id(cluster: Cluster, session_id: str) -> None:
    """A name that does not fit keys, folders and addresses is refused, naming the field."""
    with pytest.raises(errors.InvalidField) as refused:
        await cluster.client.sessions.create("puppet", session_id=session_id)
    assert refused.value.ids["field"] == "session_id"


@pytest.mark.parametrize(
    ("import_path", "error", "words"),
    [
        ("broken_agents:Any", errors.AgentImportFailed, "the model's weights are not here"),
        ("no_such_module:Any", errors.AgentImportFailed, "No module named 'no_such_module'"),
        ("session_agents:Missing", errors.AgentImportFailed, "Missing"),
        ("session_agents:NoAgent", errors.AgentImportFailed, "is not a torpor.Agent"),
        ("session_agents", errors.InvalidField, "module:Class"),
        ("", errors.InvalidField, "module:Class"),
    ],
    ids=["raises", "no module", "no class", "no agent", "no colon", "empty"],
)
async def test_agent_that_cannot_be_registered(
    cluster: Cluster, import_path: str, error: type[errors.TorporError], words: str
) -> None:
    """Registering says what the import said, and registers nothing."""
    before = [agent async for agent in cluster.client.agents.list()]
    with pytest.raises(error, match=words) as refused:
        await cluster.client.agents.register(import_path)
    assert type(refused.value) is error
    assert [agent async for agent in cluster.client.agents.list()] == before


async def test_message_that_is_too_large(session: client.Session) -> None:
    """A message over the limit is refused at the door; one just under it is handled."""
    filler = "#" * (limits.MESSAGE_BYTES_MAX - 100)
    assert (await session.send(f"return 'fits' {filler}")).text == "fits"
    with pytest.raises(errors.MessageTooLarge):
        await session.send("#" * (limits.MESSAGE_BYTES_MAX + 1))
    assert (await session.get()).usage.turns == 1


async def test_agent_that_raises(session: client.Session) -> None:
    """The error is in history with its last lines; state and files are as before the turn."""
    await session.send("self.n = 1; open('f', 'w').write('before')")
    with pytest.raises(errors.TurnFailed, match="ZeroDivisionError: no division") as failed:
        await session.send(
            "self.n = 2; open('f', 'w').write('x'); raise ZeroDivisionError('no division')"
        )
    assert type(failed.value) is errors.TurnFailed
    (event,) = await events(session, messages.AGENT_ERROR)
    assert str(event.seq) == failed.value.ids["seq"]
    assert "raise ZeroDivisionError" in event.data["traceback"] or "body" in event.data["traceback"]
    assert await session.files.read("f") == b"before"
    assert (await session.send("return f'{self.n} ' + open('f').read()")).text == "1 before"


async def test_state_that_cannot_be_pickled(session: client.Session) -> None:
    """The error names the attribute; the session lives on with the state from before."""
    await session.send("self.n = 1")
    with pytest.raises(errors.StateNotPicklable, match=r"self\.lock"):
        await session.send("import threading; self.n = 2; self.lock = threading.Lock()")
    assert (await session.send("return f'{self.n} {hasattr(self, \"lock\")}'")).text == "1 False"


async def test_reply_of_a_wrong_type(session: client.Session) -> None:
    """A reply that is no text fails the turn, saying what it was."""
    with pytest.raises(errors.TurnFailed, match="returned int"):
        await session.send("return 42")
    with pytest.raises(errors.InvalidField, match="JSON"):
        await session.send("import torpor; return torpor.Reply(data={'x': object()})")
    assert (await session.send("return 'fine'")).text == "fine"


@pytest.mark.parametrize(
    "code",
    [
        "self.n = 2; import asyncio; await asyncio.sleep(3600)",
        "self.n = 2; import time; time.sleep(3600)",
        "self.n = 2\nwhile True: pass",
    ],
    ids=["awaiting", "blocking", "looping"],
)
async def test_turn_over_its_time(cluster: Cluster, code: str) -> None:
    """A turn over its time is given up, whatever it does; the session is as before it."""
    session = await cluster.client.sessions.create("hurried")
    await session.send("self.n = 1")
    with pytest.raises(errors.TurnTimedOut):
        await session.send(code)
    assert (await session.send("return str(self.n)")).text == "1"
    (event,) = await events(session, messages.AGENT_ERROR)
    assert event.data["reason"] == errors.TurnTimedOut.reason
    await session.delete()


async def test_process_that_ends_itself(session: client.Session, tmp_path: pathlib.Path) -> None:
    """Code that exits its process runs again as after a crash, and is given up after some tries."""
    await session.send("self.n = 1")
    tries = tmp_path / "tries"
    with pytest.raises(errors.MessageGivenUp):
        await session.send(f"import os; open({str(tries)!r}, 'a').write('x'); os._exit(1)")
    assert tries.read_text() == "x" * routing.DEATHS_MAX
    assert (await session.send("return str(self.n)")).text == "1"


async def test_deadline_leaves_the_turn_running(session: client.Session) -> None:
    """A caller whose time is up learns the reply later, by the same request id."""
    code = (
        "import asyncio; self.n = getattr(self, 'n', 0) + 1; await asyncio.sleep(1.5); return 'x'"
    )
    with pytest.raises(errors.DeadlineExceeded):
        await session.send(code, request_id="slow", timeout_s=0.5)
    reply = await session.send(code, request_id="slow")
    assert reply.text == "x"
    assert (await session.send("return str(self.n)")).text == "1"


async def test_min_version_from_the_future(session: client.Session) -> None:
    """A client that saw more than the store has is told that turns were lost."""
    reply = await session.send("return 'x'")
    with pytest.raises(errors.HistoryGap):
        await session.send("return 'y'", min_version=reply.version + 10)
    assert (await session.send("return 'y'", min_version=reply.version)).text == "y"
