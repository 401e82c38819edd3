"""A session's process is broken at each point that a message passes: nothing is lost or doubled."""

import asyncio
import enum
import os
import pathlib
import signal

import pytest
from shared_cluster import SLOW_S, Cluster, events

from torpor import client, errors, limits, messages
from torpor.probes import Action, Armed, Point, Probes
from torpor.testing.eventually import assert_eventually

#: The turn that every test repeats: a token into state, file and history, `more` events beside it,
#: and a state that has to become a blob.
APPEND = f"""
import os
token, self.ballast = message.data["token"], os.urandom({2 * limits.INLINE_STATE_BYTES_MAX})
self.tokens = [*getattr(self, "tokens", ()), token]
with open("tokens", "a") as file:
    file.write(token + "\\n")
await ctx.emit("puppet.token", {{"token": token}})
for number in range(message.data["more"]):
    await ctx.emit("puppet.noise", {{"number": number}})
return token
"""
#: A turn that tells what is there.
LOOK = """
import torpor
return torpor.Reply(data={"state": self.tokens, "file": open("tokens").read().split()})
"""
#: What the session is told to remember before its process is broken, and when it is.
EARLIER, LATER = "earlier", "later"
#: Points of the shared storage, which knows no sessions.
OF_BLOBS = (Point.BLOB_BEFORE, Point.BLOB_AFTER, Point.BLOB_READ)


class Way(enum.Enum):
    """What leads past a point."""

    WAKING = enum.auto()
    TURN = enum.auto()
    LEAVING = enum.auto()


#: A point that is not here fails its test: say what leads past it.
WAYS = {
    Point.BOUND: Way.WAKING,
    Point.ACQUIRE_BEFORE: Way.WAKING,
    Point.ACQUIRE_AFTER: Way.WAKING,
    Point.RESTORE_BEFORE: Way.WAKING,
    Point.RESTORE_AFTER: Way.WAKING,
    Point.BLOB_READ: Way.WAKING,
    Point.BLOB_BEFORE: Way.TURN,
    Point.BLOB_AFTER: Way.TURN,
    Point.COMMIT_BEFORE: Way.TURN,
    Point.COMMIT_AFTER: Way.TURN,
    Point.REPLY_BEFORE: Way.TURN,
    Point.SEAL_BEFORE: Way.LEAVING,
    Point.SEAL_AFTER: Way.LEAVING,
    Point.RELEASE_BEFORE: Way.LEAVING,
    Point.RELEASE_AFTER: Way.LEAVING,
}
#: Where a turn is committed already, so that its message, sent again, finds its answer.
COMMITTED = (Point.COMMIT_AFTER, Point.REPLY_BEFORE)
#: What wakes for a message that was accepted passes these.
ACCEPTED = (Point.ACQUIRE_AFTER, Point.RESTORE_AFTER, Point.COMMIT_BEFORE, *COMMITTED)


class Scene:
    """One session of the shared deployment, and its processes."""

    def __init__(self, cluster: Cluster, session: client.Session, probes: Probes) -> None:
        self.cluster = cluster
        self.session = session
        self.probes = probes
        self.key = str(cluster.key(session))

    async def append(
        self,
        token: str,
        *,
        more: int = 0,
        through: client.Session | None = None,
        timeout_s: float | None = None,
    ) -> client.Reply:
        """Have the session remember a token; the same token is the same request."""
        return await (through or self.session).send(
            APPEND, data={"token": token, "more": more}, request_id=token, timeout_s=timeout_s
        )

    def arm(self, point: Point, action: Action = Action.KILL) -> None:
        """Let the session's process be broken at a point."""
        session = "" if point in OF_BLOBS else self.key
        self.probes.arm(point, Armed(action=action, session=session))

    async def broken(self, point: Point) -> int:
        """Wait until a process was broken at the point, and return it: one of the session's."""

        async def fired() -> bool:
            return bool(self.probes.fired(point))

        await assert_eventually(fired, SLOW_S)
        (pid,) = self.probes.fired(point)
        assert pid in self.pids(Point.BOUND)
        return pid

    def pids(self, point: Point, **facts: object) -> set[int]:
        """Return the processes that passed a point with the session, and with these facts."""
        wanted = {"point": point, "session": self.key, **facts}
        return {
            record["pid"] for record in self.probes.records() if wanted.items() <= record.items()
        }

    async def assert_whole(self, *tokens: str) -> None:
        """Assert that state, file and history hold each token once, in order, without a gap."""
        reply = await self.session.send(LOOK, request_id="look")
        assert reply.data == {"state": list(tokens), "file": list(tokens)}
        history = await events(self.session)
        assert [event.seq for event in history] == list(range(1, len(history) + 1))
        assert [e.data["token"] for e in history if e.type == "puppet.token"] == list(tokens)
        for kind in (messages.USER_MESSAGE, messages.AGENT_MESSAGE):
            requests = [event.data["request_id"] for event in history if event.type == kind]
            assert requests == [*tokens, "look"]

    async def assert_nothing_left(self) -> None:
        """Assert that the owner lives, and that once it has left nobody and nothing is there."""
        head = await self.cluster.head(self.session)
        (owner,) = self.pids(Point.ACQUIRE_AFTER, epoch=head.epoch, nonce=head.nonce)
        assert not dead(owner)

        async def gone() -> bool:
            # Another gateway may have seen the accepted message's hint, and wake it once more.
            await self.session.evict()
            # Whoever works in a folder keeps it from being removed.
            return not self._folders()

        await assert_eventually(gone, SLOW_S)

    def _folders(self) -> list[pathlib.Path]:
        records = [each for each in self.probes.records() if each["point"] == Point.BOUND]
        slots = [pathlib.Path(each["slot"]) for each in records if each["session"] == self.key]
        return [slot for slot in slots if slot.exists()]


@pytest.fixture
def scene(cluster: Cluster, session: client.Session, probes: Probes) -> Scene:
    """A new session, and the deployment's probes."""
    return Scene(cluster, session, probes)


@pytest.mark.parametrize("point", Point)
async def test_killed(scene: Scene, point: Point) -> None:
    """Kill -9 at a point: who asked is answered, what was asked is done once, nothing is left."""
    way = WAYS[point]
    # A tail that is sealed when the session leaves.
    await scene.append(EARLIER, more=limits.HOT_EVENTS_ASLEEP_MAX * (way is Way.LEAVING))
    if way is Way.WAKING:
        await scene.session.evict()
    scene.arm(point)
    if way is Way.LEAVING:
        assert not (await scene.session.evict()).resident
    else:
        reply = await scene.append(LATER)
        assert (reply.text, reply.repeated) == (LATER, point in COMMITTED)
    await ended(await scene.broken(point))
    again = await scene.append(LATER)
    assert (again.text, again.repeated) == (LATER, way is not Way.LEAVING)
    await scene.assert_whole(EARLIER, LATER)
    await scene.assert_nothing_left()


@pytest.mark.parametrize("point", [Point.SEAL_BEFORE, Point.SEAL_AFTER])
async def test_killed_while_it_seals(scene: Scene, point: Point) -> None:
    """Kill -9 while a session that stays moves its long tail: what it had committed is there."""
    await scene.append(EARLIER)
    scene.arm(point)
    assert (await scene.append(LATER, more=limits.HOT_EVENTS_MAX)).text == LATER
    await ended(await scene.broken(point))
    await scene.assert_whole(EARLIER, LATER)
    await scene.assert_nothing_left()


@pytest.mark.parametrize("point", ACCEPTED)
async def test_killed_over_an_accepted_message(scene: Scene, point: Point) -> None:
    """Kill -9 while nobody waits: the message's turn runs once, and its reply can be fetched."""
    await scene.append(EARLIER)
    await scene.session.evict()
    scene.arm(point)
    await scene.session.post(APPEND, data={"token": LATER, "more": 0}, request_id=LATER)
    await ended(await scene.broken(point))
    assert (await scene.append(LATER)).text == LATER
    await scene.assert_whole(EARLIER, LATER)
    assert await scene.cluster.store.sessions.inbox(scene.cluster.key(scene.session)) == []
    await scene.assert_nothing_left()


async def test_frozen_owner_is_ended(scene: Scene) -> None:
    """An owner that stands still before its commit is killed, and its turn runs once elsewhere."""
    await scene.append(EARLIER)
    scene.arm(Point.COMMIT_BEFORE, Action.FREEZE)
    patient = asyncio.create_task(scene.append(LATER))
    frozen = await scene.broken(Point.COMMIT_BEFORE)
    # Somebody's impatience is what finds out: the first caller would wait for its turn.
    hasty = asyncio.create_task(scene.append(LATER, timeout_s=2))
    replies = await asyncio.gather(patient, hasty, return_exceptions=True)
    assert replies[0].text == LATER
    assert isinstance(replies[1], errors.DeadlineExceeded) or replies[1].text == LATER
    await ended(frozen)
    assert frozen not in scene.pids(Point.COMMIT_AFTER, requests=[LATER])
    await scene.assert_whole(EARLIER, LATER)
    await scene.assert_nothing_left()


async def test_thawed_owner_cannot_commit(scene: Scene) -> None:
    """A node stands still while a commit is about to leave it, and goes on once it was replaced.

    The message, sent again to another gateway, is handled once, by the new owner. The old one's
    commit is refused, and it ends by itself.
    """
    cluster = scene.cluster
    await scene.append(EARLIER)
    before = (await cluster.head(scene.session)).owner
    agent = cluster.node_agent(await cluster.home(scene.session))
    agent_pid = await agent.__ray_call__.remote(lambda _: os.getpid())
    scene.arm(Point.COMMIT_BEFORE, Action.FREEZE)
    first = asyncio.create_task(scene.append(LATER))
    frozen = await scene.broken(Point.COMMIT_BEFORE)
    os.kill(agent_pid, signal.SIGSTOP)
    try:
        elsewhere = cluster.clients[1].sessions.handle(scene.session.id)
        replies = [await scene.append(LATER, through=elsewhere), await first]
        assert not dead(frozen)
        os.kill(frozen, signal.SIGCONT)
        await ended(frozen)
    finally:
        os.kill(agent_pid, signal.SIGCONT)
    assert len({(reply.text, reply.seq, reply.version) for reply in replies}) == 1
    assert sorted(reply.repeated for reply in replies) == [False, True]
    assert len(scene.pids(Point.COMMIT_BEFORE, requests=[LATER])) == 2
    assert frozen not in scene.pids(Point.COMMIT_AFTER, requests=[LATER])

    async def back() -> bool:
        views = {view.record.node: view for view in await cluster.store.nodes.views()}
        here = views[before.node]
        return here.alive and here.record.incarnation != before.incarnation

    await assert_eventually(back, SLOW_S)
    await scene.assert_whole(EARLIER, LATER)
    await scene.assert_nothing_left()


async def ended(pid: int) -> None:
    """Wait until a process is gone."""

    async def gone() -> bool:
        return dead(pid)

    await assert_eventually(gone, SLOW_S)


def dead(pid: int) -> bool:
    """Whether a process is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
