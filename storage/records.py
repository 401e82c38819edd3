"""The records that Redis holds, as values."""

import enum
from collections.abc import Mapping, Sequence

import msgspec

from torpor import definition, messages


class Status(enum.StrEnum):
    """What a session is doing, as far as a person can tell. Residency is another matter."""

    IDLE = "idle"
    RUNNING = "running"
    PAUSED = "paused"


class SessionKey(msgspec.Struct, frozen=True):
    """Which session: everything that is stored or called names both."""

    tenant: str
    session: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.session}"


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Where the activation lives that may write."""

    #: Ray's node id in hex.
    node: str
    #: Which life of that node's agent; its lease is what keeps the owner in office.
    incarnation: str
    #: The Ray actor's name.
    actor: str
    #: Where its process listens by itself (`torpor.actors.lane_address`); empty: only Ray reaches
    #: it.
    lane: str = ""


class CheckpointRef(msgspec.Struct, frozen=True, kw_only=True):
    """What a wake restores: state and workspace of one version."""

    #: The version and epoch that wrote the *state*: a commit that changes none keeps the reference.
    version: int
    epoch: int
    #: The session that wrote the state.
    origin: str
    #: Digest of the signed envelope.
    state: str
    state_bytes: int
    #: True when the envelope lies in Redis beside the head, not in a blob.
    inline: bool


class RestorePoint(msgspec.Struct, frozen=True, kw_only=True):
    """A version that a wake can go back to: what the head named while it was the newest."""

    version: int
    #: What the head's `next_seq` was: history up to here is of this version.
    next_seq: int
    #: None before the first turn.
    checkpoint: CheckpointRef | None
    #: Digest of the workspace's root manifest; empty for an empty workspace.
    manifest: str
    #: The committer's wall clock, for people.
    at_ms: int
    #: The envelope, if `checkpoint.inline`.
    inline_state: bytes | None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the session has used so far; placement expects more of the same."""

    turns: int = 0
    #: CPU milliseconds of its processes, over its whole life.
    cpu_ms: int = 0
    #: Milliseconds that turns took.
    busy_ms: int = 0
    #: Resident bytes at the last commit.
    rss_bytes: int = 0


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The one record that says who owns a session and what its last commit is."""

    key: SessionKey
    agent: str
    agent_version: int
    status: Status
    epoch: int
    #: Empty while nobody owns the session.
    nonce: str
    owner: Owner | None
    version: int
    next_seq: int
    #: The first seq of the hot tail; what is before it lies in cold segments.
    hot_from: int
    #: Digest of the index of cold segments; empty when there are none.
    cold_index: str
    #: The id of the last commit: tells an owner whether a write whose answer was lost took place.
    commit_id: str
    #: None before the first turn.
    checkpoint: CheckpointRef | None
    #: Digest of the workspace's root manifest; empty for an empty workspace.
    manifest: str
    usage: Usage
    #: Claims in a row that found something in the inbox, and whose process died without a commit: a
    #: message that kills whatever handles it shows here.
    fruitless: int = 0
    #: The node that the last owner left in order, while there is no owner: it may keep the
    #: workspace. A hint.
    left_node: str = ""
    created_ms: int
    updated_ms: int

    @property
    def resident(self) -> bool:
        """Whether a process may be holding the session."""
        return self.owner is not None


class OutcomeState(enum.StrEnum):
    """What became of a request."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a request id."""

    #: Of the request's body: the same id with another body is an error.
    body_digest: str
    state: OutcomeState
    #: Of the commit that resolved it; 0 while pending.
    version: int = 0
    #: Of the event that answers it (`agent.message` or `agent.error`); 0 while none does.
    seq: int = 0
    #: When it was resolved, by the owner's clock.
    at_ms: int = 0


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """What the store had acknowledged to an owner and knows no more: it went back."""

    #: The newest version that was acknowledged.
    version: int
    #: The newest that is still there, as far as that owner can know.
    kept_version: int
    #: The first and the last seq of the events of the versions between.
    first_seq: int
    last_seq: int
    #: Ids of the newest requests among them.
    requests: Sequence[str] = ()


class InboxItem(msgspec.Struct, frozen=True, kw_only=True):
    """A message that was accepted durably and waits for its turn."""

    message: messages.Message
    body_digest: str
    at_ms: int
    #: Set in place of a message's text: what a former owner left for the one in office to report.
    forgotten: Forgotten | None = None


class NewSession(msgspec.Struct, frozen=True, kw_only=True):
    """What `create` writes."""

    key: SessionKey
    agent: str
    agent_version: int
    request_id: str
    created_ms: int

    def head(self) -> Head:
        """Return the head of the new session: at commit 1, with one event, owned by nobody."""
        return Head(
            key=self.key,
            agent=self.agent,
            agent_version=self.agent_version,
            status=Status.IDLE,
            epoch=0,
            nonce="",
            owner=None,
            version=1,
            next_seq=2,
            hot_from=1,
            cold_index="",
            commit_id="",
            checkpoint=None,
            manifest="",
            usage=Usage(),
            created_ms=self.created_ms,
            updated_ms=self.created_ms,
        )


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """One atomic, fenced write. What is None stays as it is."""

    key: SessionKey
    epoch: int
    #: Empty when nobody owns the session and a gateway changes its status.
    nonce: str
    expected_version: int
    commit_id: str
    #: With the seqs that follow the head's `next_seq` without a gap.
    events: Sequence[messages.Event] = ()
    checkpoint: CheckpointRef | None = None
    #: The envelope, if it goes into Redis; required when `checkpoint.inline`, except that a commit
    #: which goes back finds that of its restore point there.
    inline_state: bytes | None = None
    manifest: str | None = None
    #: The version of the restore point whose state this commit makes the newest again; that point
    #: and those after it, which are damaged, are forgotten. 0 for an ordinary commit.
    back_to: int = 0
    status: Status | None = None
    usage: Usage | None = None
    #: request id → what became of it.
    outcomes: Mapping[str, Outcome] = {}
    #: Request ids of the inbox's first items, in order: they are removed by this commit.
    consumed: Sequence[str] = ()
    #: The committer's wall clock, for people.
    at_ms: int = 0


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """A commit that took place, now or (`duplicate`) when the same commit id was first sent."""

    version: int
    next_seq: int
    duplicate: bool = False


class Acquire(msgspec.Struct, frozen=True, kw_only=True):
    """A claim of ownership: compare-and-set on what was observed."""

    key: SessionKey
    observed_epoch: int
    #: The observed owner's incarnation; empty when nobody owned it.
    observed_incarnation: str
    owner: Owner
    nonce: str


class Acquired(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a new owner needs from Redis, read with the claim in one round trip."""

    #: As it is after the claim: epoch + 1, the new owner's nonce.
    head: Head
    inline_state: bytes | None
    hot: list[messages.Event]
    inbox: list[InboxItem]
    outcomes: dict[str, Outcome]


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """Moves the boundary between hot and cold after the segment was written."""

    key: SessionKey
    epoch: int
    nonce: str
    #: As observed. Hot may begin later by now (a seal whose answer was lost), but not earlier.
    hot_from: int
    new_hot_from: int
    #: Holds every event before `new_hot_from`.
    cold_index: str
    #: Request ids that only the cold segments remember from now on.
    forgotten: Sequence[str] = ()


class HotPage(msgspec.Struct, frozen=True, kw_only=True):
    """A read of the hot tail, with the boundary as of the same moment."""

    events: list[messages.Event]
    hot_from: int
    next_seq: int
    cold_index: str


class Enqueued(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a durable delivery."""

    #: Items in the inbox after it.
    length: int
    #: Set when this request id was known already: nothing was appended.
    known: Outcome | None = None


class AgentVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable version of an agent."""

    name: str
    version: int
    #: `module:Class`, importable on every node.
    import_path: str
    #: Of the module's source and the settings: registering the same again makes no new version.
    digest: str
    settings: definition.AgentSettings
    created_ms: int


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an API key; the key itself is stored nowhere."""

    tenant: str
    #: Operators may use `Admin` and name another tenant.
    operator: bool
    label: str
    created_ms: int


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A node as its agent announced it."""

    #: Ray's node id in hex.
    node: str
    #: A name for people.
    name: str
    incarnation: str
    #: The node agent's Ray actor name.
    agent_actor: str
    #: Where the node agent listens by itself, as `Owner.lane`; empty: only Ray reaches it.
    agent_lane: str = ""
    #: What callers have to know there; a new one with each incarnation.
    agent_nonce: str = ""
    #: Where its gateway listens, `host:port`; empty when it has none.
    gateway: str
    sessions_max: int
    #: What its sessions may use: cores and bytes.
    cpus: float
    memory_bytes: int
    started_ms: int


class NodeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What a node agent publishes once a second."""

    node: str
    incarnation: str
    #: Counts up by one a second; a gateway tells a stale load by a number that stands still.
    beat: int
    sessions: int
    #: Activations under way.
    activating: int
    sessions_max: int
    #: Of the node's share of the machine, 0 to 1, above when overcommitted; smoothed over seconds.
    cpu: float
    #: Used share of the memory that the node may use, 0 to 1.
    memory: float
    draining: bool
    #: Processes that wait to be bound, of all agents together.
    slots_in_stock: int = 0


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node as a gateway sees it."""

    record: NodeRecord
    load: NodeLoad | None
    #: Whether its lease still stands.
    alive: bool
