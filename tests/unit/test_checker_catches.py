"""The checker can fail: each protection, taken out of real code on a real store, is missed.

Every scenario runs twice: as the code is, where nothing may be found, and with one protection cut
out, where the checker must name the invariant that it upheld.
"""

import hashlib
import pathlib
import random
import re
import sys
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from torpor import clock, errors, messages, probes
from torpor.actors import changes, ownership, protocol
from torpor.router import deadline, wake_sweeper, waking
from torpor.storage import history, keys, local_blobs, records, redis_store, redis_wake, scripts
from torpor.testing import activations, invariants, recording, store_samples, valkey, witness
from torpor.testing.recording import Ending, Kind, Reply

PROTECTED = pytest.mark.parametrize("protected", [True, False])


class Stage:
    """One session on a real store, its owners in this process, and clients that record."""

    def __init__(
        self, store: redis_store.RedisStore, key: records.SessionKey, folder: pathlib.Path
    ) -> None:
        self.store = store
        self.key = key
        self.recorder = recording.Recorder()
        self._blobs = local_blobs.LocalBlobStore(folder)
        self._folder = folder
        self._probes = recording.ProbeReader(folder)
        self._records: list[recording.Record] = []
        self._owners: list[activations.Activation] = []

    async def owner(self) -> activations.Activation:
        """Take the session over from whoever has it."""
        self._owners.append(
            await activations.activate(self.store, self.key, witness.Witness, self._folder)
        )
        return self._owners[-1]

    async def append(self, owner: activations.Activation, token: str) -> None:
        """Have an owner append a token, under a request id of the token's own."""
        await self._turn(Kind.APPEND, owner, f"append {token}", token)

    async def read(self, owner: activations.Activation) -> None:
        """Have an owner say what it holds."""
        await self._turn(Kind.READ, owner, "read")

    async def _turn(
        self, kind: Kind, owner: activations.Activation, text: str, token: str = ""
    ) -> None:
        request_id = f"request-{token or len(self.recorder.operations)}"
        begun = self.recorder.begin(
            kind,
            tenant=self.key.tenant,
            session=self.key.session,
            request_id=request_id,
            token=token,
        )
        try:
            told = await owner.send(text, request_id)
        except errors.TorporError as error:
            self.recorder.end(begun, Ending.UNKNOWN, reason=error.reason)
            return
        where = {"seq": told.seq, "version": told.version, "repeated": told.repeated}
        self.recorder.end(begun, Ending.OK, reply=msgspec.convert(told.data | where, Reply))

    async def found(self) -> set[str]:
        """Return which invariants the checker finds violated."""
        self._records += self._probes.new()
        reader = history.History(self.store.sessions, self._blobs, self.key)
        run = invariants.History(
            operations=self.recorder.operations,
            sessions={str(self.key): await reader.read(0, 1000)},
            records=self._records,
        )
        return {str(violation.invariant) for violation in invariants.check(run)}

    async def close(self) -> None:
        """End all owners."""
        for owner in self._owners:
            await owner.close()


@pytest.fixture
async def stage(
    own_store_server: valkey.Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    """A new session whose processes record what they claim and commit."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(probes, "_here", probes._Here(tmp_path))
    store = redis_store.open(store_samples.deployment_at(own_store_server.url))
    made = Stage(store, await activations.new_session(store), tmp_path)
    yield made
    await made.close()
    await store.close()


# --- the fence ------------------------------------------------------------------------------------


def _cut_out(monkeypatch: pytest.MonkeyPatch, name: str, pattern: str) -> None:
    script = scripts.script(name)
    body, count = re.subn(pattern.encode(), b"", script._body, flags=re.DOTALL)
    assert count == 1, f"{pattern} is not in {name}.lua any more"
    monkeypatch.setattr(script, "_body", body)
    monkeypatch.setattr(script, "_digest", hashlib.sha1(body, usedforsecurity=False).hexdigest())


@PROTECTED
async def test_fence(stage: Stage, monkeypatch: pytest.MonkeyPatch, *, protected: bool) -> None:
    """Without epoch and nonce in the commit script, an owner that was followed writes: I1."""
    if not protected:
        _cut_out(monkeypatch, "commit", r"if head\[2\] ~= ARGV\[1\].*?\nend\n")
    first = await stage.owner()
    await stage.append(first, "a")
    second = await stage.owner()
    await stage.append(first, "b")
    await stage.append(second, "c")
    assert await stage.found() == (set() if protected else {"I1"})


# --- the gate -------------------------------------------------------------------------------------


class Early:
    """Ownership that says yes before the store did."""

    def __init__(self) -> None:
        self.left: list[tuple[ownership.Ownership, records.Commit]] = []

    def commit(self) -> Callable[..., object]:
        """Return what takes the place of `Ownership.commit`."""

        async def early(owned: ownership.Ownership, change: changes.Change) -> records.Committed:
            commit = await owned._numbered(change)
            self.left.append((owned, commit))
            owned._mirror(commit, change)
            return records.Committed(
                version=owned.head.version, next_seq=owned.head.next_seq, duplicate=False
            )

        return early

    async def land(self) -> None:
        """Send what was promised."""
        for owned, commit in self.left:
            await owned._store.sessions.commit(commit)
            owned._reach(probes.Point.COMMIT_BEFORE, commit)
            owned._reach(probes.Point.COMMIT_AFTER, commit)


@PROTECTED
async def test_gate_before_a_crash(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, *, protected: bool
) -> None:
    """A reply before its commit is a lie when the process dies in between: I5, and I2."""
    owner = await stage.owner()
    with monkeypatch.context() as patched:
        if not protected:
            patched.setattr(ownership.Ownership, "commit", Early().commit())
        await stage.append(owner, "a")
    await owner.close()
    await stage.append(await stage.owner(), "b")
    assert await stage.found() == (set() if protected else {"I2", "I5"})


@PROTECTED
async def test_gate_with_luck(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, *, protected: bool
) -> None:
    """A reply before its commit is found even if the commit comes true afterwards: I5."""
    owner, early = await stage.owner(), Early()
    if not protected:
        monkeypatch.setattr(ownership.Ownership, "commit", early.commit())
    await stage.append(owner, "a")
    await early.land()
    assert await stage.found() == (set() if protected else {"I5"})


# --- outcomes in the commit -----------------------------------------------------------------------


@PROTECTED
@pytest.mark.parametrize("moved", [True, False])
async def test_dedup(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, *, moved: bool, protected: bool
) -> None:
    """A request that comes twice, to one owner or to two, is handled twice if nobody looks: I2."""
    if not protected:
        monkeypatch.setattr(ownership.Ownership, "remembered", lambda *_: None)
    owner = await stage.owner()
    await stage.append(owner, "a")
    await stage.append(await stage.owner() if moved else owner, "a")
    assert await stage.found() == (set() if protected else {"I2"})


# --- one version of everything --------------------------------------------------------------------


@PROTECTED
@pytest.mark.parametrize("part", ["manifest", "state"])
async def test_one_commit_names_everything(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, part: str, *, protected: bool
) -> None:
    """A commit without files or state leaves the next owner with those of another version: I4."""
    commit = ownership.Ownership.commit

    async def partly(owned: ownership.Ownership, change: changes.Change) -> records.Committed:
        return await commit(owned, msgspec.structs.replace(change, **{part: None}))

    owner = await stage.owner()
    await stage.append(owner, "a")
    if not protected:
        monkeypatch.setattr(ownership.Ownership, "commit", partly)
    await stage.append(owner, "b")
    # Nobody sees it before the session wakes elsewhere.
    assert await stage.found() == set()
    await stage.read(await stage.owner())
    assert await stage.found() == (set() if protected else {"I4"})


# --- the wake hint --------------------------------------------------------------------------------


class Gateway:
    """The way to owners: takes the session over here, or finds nobody."""

    def __init__(self, stage: Stage, *, lives: bool) -> None:
        self._stage = stage
        self._lives = lives

    async def drain_inbox(self, key: records.SessionKey, until: deadline.Deadline) -> None:
        """Have an owner look into its inbox."""
        assert key == self._stage.key
        if not self._lives:
            raise errors.OwnerUnreachable
        owner = await self._stage.owner()
        await owner.put(protocol.DrainInbox())


@PROTECTED
async def test_wake_hint(stage: Stage, monkeypatch: pytest.MonkeyPatch, *, protected: bool) -> None:
    """A message whose gateway dies after it said yes is found by the sweep of another one: I2."""
    time = clock.SystemClock()

    async def no_hint(*_: object) -> None:
        pass

    if not protected:
        monkeypatch.setattr(redis_wake.RedisWakeIndex, "ensure", no_hint)
    begun = stage.recorder.begin(
        Kind.ACCEPT,
        tenant=stage.key.tenant,
        session=stage.key.session,
        request_id="posted",
        token="a",  # noqa: S106 - no password
    )
    dies = waking.Waker(stage.store, Gateway(stage, lives=False), time)  # type: ignore[arg-type]
    message = messages.Message(text="append a", request_id="posted")
    await dies.accept(stage.key, message, body_digest="append a")
    stage.recorder.end(begun, Ending.OK)
    await dies.close()
    lives = waking.Waker(stage.store, Gateway(stage, lives=True), time)  # type: ignore[arg-type]
    sweeper = wake_sweeper.WakeSweeper(stage.store, lives, time, random.Random(1))
    await sweeper.sweep(keys.wake_shard(stage.key))
    assert await stage.found() == (set() if protected else {"I2"})
