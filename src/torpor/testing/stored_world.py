"""A deployment's store and shared storage, with sessions that took turns, for tests of checks."""

# ruff: noqa: S101 - these are assertions of tests

import os
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any

import torpor
from torpor import clock
from torpor.actors import protocol
from torpor.storage import findings, fsck, keyring, local_blobs, records, redis_store
from torpor.testing import activations


class Keeper(torpor.Agent):
    """Writes files, and keeps as much state as it is told."""

    def __init__(self) -> None:
        self.turns = 0

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """`write NAME TEXT` writes a file; `large` makes a state that goes into a blob."""
        self.turns += 1
        verb, _, rest = message.text.partition(" ")
        if verb == "large":
            self.ballast = os.urandom(64 << 10)
        elif verb == "write":
            name, _, text = rest.partition(" ")
            path = ctx.workspace / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(self.turns)


class _Masters(keyring.Keyring):
    """A keyring whose keys are those that activations sign with."""

    def __init__(self) -> None:
        super().__init__({})

    def for_tenant(self, tenant: str) -> keyring.TenantKeys:
        """Return them."""
        assert tenant == activations.KEYS.tenant
        return activations.KEYS


class _Pause(clock.SystemClock):
    """A clock whose pauses take no time, but do what a test wants to happen meanwhile."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]] | None) -> None:
        self._meanwhile = meanwhile

    async def sleep(self, seconds: float) -> None:
        """Do it."""
        if self._meanwhile is not None:
            await self._meanwhile()


class StoredWorld:
    """A store, shared storage, and sessions that took turns."""

    def __init__(self, store: redis_store.RedisStore, storage: pathlib.Path) -> None:
        self.store = store
        self.storage = storage
        self.blob_store = local_blobs.LocalBlobStore(storage)
        self.summary = fsck.Summary()

    async def session(self, *turns: str) -> records.Head:
        """Return a session that took these turns and was evicted."""
        here = await self.activate()
        for text in turns:
            await here.send(text)
        protocol.accept(await here.put(protocol.Leave(epoch=1)))
        await here.close()
        return await self.store.sessions.head(here.owned.head.key)

    async def activate(self, key: records.SessionKey | None = None) -> activations.Activation:
        """Return a session that is awake, a new one or that of `key`."""
        key = key or await activations.new_session(self.store)
        return await activations.activate(
            self.store,
            key,
            Keeper,
            self.storage.parent / key.session,
            blob_store=self.blob_store,
        )

    async def check(
        self,
        *,
        meanwhile: Callable[[], Awaitable[object]] | None = None,
        masters: keyring.Keyring | None = None,
        **plan: Any,
    ) -> list[findings.Finding]:
        """Return what a run finds."""
        found: list[findings.Finding] = []
        run = fsck.Fsck(
            opened=self.store,
            storage=self.storage,
            masters=masters or _Masters(),
            plan=fsck.Plan(**plan),
            report=found.append,
            time=_Pause(meanwhile),
        )
        self.summary = await run.run()
        return found

    async def names(self, **plan: Any) -> list[str]:
        """Return the names of what a run finds."""
        return [found.what.value for found in await self.check(**plan)]

    def blob(self, digest: str) -> pathlib.Path:
        """Return where a blob lies."""
        return self.storage / "acme" / "blobs" / digest[3:5] / digest

    def blobs(self) -> dict[str, bytes]:
        """Return all blobs."""
        return {p.name: p.read_bytes() for p in self.storage.glob("acme/blobs/??/b3-*")}

    def holding(self, content: bytes) -> pathlib.Path:
        """Return the blob of a file."""
        (digest,) = [name for name, data in self.blobs().items() if data == content]
        return self.blob(digest)

    def age(self, path: pathlib.Path, *, days: int = 30) -> None:
        """Let a file have been touched long ago."""
        at_ns = path.stat().st_mtime_ns - days * 86_400 * 10**9
        os.utime(path, ns=(at_ns, at_ns))

    async def redis(self, *words: object) -> object:
        """Send a command to the store, past everything."""
        (reply,) = await self.store._wire.read(words)  # noqa: SLF001 - past everything
        return reply
