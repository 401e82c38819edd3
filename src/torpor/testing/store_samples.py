"""Records for tests of stores: the common case, with what matters to a test as arguments."""

import pathlib
from typing import Any

import msgspec

from torpor import definition, deployment, ids, limits, messages
from torpor.storage import keys, records, store

AT_MS = 1_700_000_000_000
OWNER = records.Owner(
    node="node-1", incarnation="inc-1", actor="actor-1", lane="10.0.0.5:4567,/run/lanes/1.sock"
)


def key(session: str = "") -> records.SessionKey:
    """Return a session of a tenant that no other test uses."""
    return records.SessionKey(ids.random_id("tenant"), session or "chat")


def keys_of_one_shard(count: int) -> list[records.SessionKey]:
    """Return sessions of one new tenant, in order of name, whose hints lie in one shard."""
    tenant = ids.random_id("tenant")
    shards: dict[int, list[records.SessionKey]] = {}
    for number in range(count * limits.WAKE_SHARDS):
        made = records.SessionKey(tenant, f"chat-{number:03}")
        shards.setdefault(keys.wake_shard(made), []).append(made)
    return max(shards.values(), key=len)[:count]


def new(
    key: records.SessionKey, *, request_id: str = "create-1", at_ms: int = AT_MS
) -> records.NewSession:
    """Return a request to create a session."""
    return records.NewSession(
        key=key, agent="notebook", agent_version=1, request_id=request_id, created_ms=at_ms
    )


def claim(head: records.Head, *, nonce: str = "", owner: records.Owner = OWNER) -> records.Acquire:
    """Return a claim on a session as it was observed."""
    return records.Acquire(
        key=head.key,
        observed_epoch=head.epoch,
        observed_incarnation=head.owner.incarnation if head.owner else "",
        owner=owner,
        nonce=nonce or ids.nonce(),
    )


def node_record(
    node: str, *, incarnation: str = "i-1", lane: str = "", agent_nonce: str = ""
) -> records.NodeRecord:
    """Return a node as its agent announces it."""
    return records.NodeRecord(
        node=node,
        name=f"name of {node}",
        incarnation=incarnation,
        agent_actor=f"node-agent/{node}",
        agent_lane=lane,
        agent_nonce=agent_nonce,
        gateway="127.0.0.1:7420",
        sessions_max=8,
        cpus=2.0,
        memory_bytes=1 << 30,
        started_ms=AT_MS,
    )


def events(head: records.Head, count: int) -> list[messages.Event]:
    """Return the next events of a session."""
    return [
        messages.Event(
            seq=head.next_seq + i,
            type="user.message",
            data={"text": f"message {i}", "nested": {"list": [1, 2.5, None, True]}},
            version=head.version + 1,
            at_ms=AT_MS,
        )
        for i in range(count)
    ]


def commit(head: records.Head, *, count: int = 1, **changes: Any) -> records.Commit:
    """Return the next commit of the owner that `head` names, but for `changes`."""
    fields: dict[str, Any] = {
        "key": head.key,
        "epoch": head.epoch,
        "nonce": head.nonce,
        "expected_version": head.version,
        "commit_id": ids.random_id("commit"),
        "events": events(head, count),
        "at_ms": AT_MS,
    }
    return records.Commit(**{**fields, **changes})


def item(request_id: str, *, digest: str = "digest-1") -> records.InboxItem:
    """Return a message that waits."""
    message = messages.Message(text="hello", data={"n": 1}, request_id=request_id)
    return records.InboxItem(message=message, body_digest=digest, at_ms=AT_MS)


def done(*, digest: str = "digest-1", version: int = 2) -> records.Outcome:
    """Return the outcome of a request that was handled."""
    return records.Outcome(
        body_digest=digest, state=records.OutcomeState.DONE, version=version, seq=3, at_ms=AT_MS
    )


def agent_version(name: str, digest: str) -> records.AgentVersion:
    """Return a version to register."""
    return records.AgentVersion(
        name=name,
        version=0,
        import_path="my_agents:Notebook",
        digest=digest,
        settings=definition.AgentSettings(idle_timeout_s=5.0),
        created_ms=AT_MS,
    )


async def owned(target: store.Store, key: records.SessionKey | None = None) -> records.Head:
    """Create a session and acquire it; returns its head."""
    head = await target.sessions.create(new(key or _fresh()))
    return (await target.sessions.acquire(claim(head))).head


def _fresh() -> records.SessionKey:
    return key()


def head() -> records.Head:
    """Return the head of a session that no store has, as its owner would see it."""
    made = new(key()).head()
    return msgspec.structs.replace(made, epoch=1, nonce="nonce-1", owner=OWNER)


def deployment_at(
    store_url: str, durability: deployment.Durability = deployment.Durability.FSYNC
) -> deployment.Deployment:
    """Return a deployment that has nothing but a store."""
    nowhere = pathlib.Path("unused")
    return deployment.Deployment(
        store_url=store_url,
        durability=durability,
        storage=nowhere,
        scratch=nowhere,
        signing_key_file=nowhere,
    )
