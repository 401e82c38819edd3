"""Sessions that live, crash and are damaged, for tests of how they wake: real store, real files."""
# ruff: noqa: S101 - these are tests

import contextlib
import dataclasses
import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import torpor
from torpor import limits, messages
from torpor.storage import keys, local_blobs, manifest, records, redis_store, storage_proof
from torpor.testing import activations, store_samples, valkey

#: Of a state that is too large to lie in the store.
LARGE = limits.INLINE_STATE_BYTES_MAX


class Keeper(torpor.Agent):
    """Keeps the number of its last turn in its state and in files; one file never changes."""

    #: What `on_recover` was told in this process, of all sessions.
    told: ClassVar[list[torpor.Lost]] = []
    #: What it is to do.
    hook: ClassVar[Callable[["Keeper", torpor.Lost], None] | None] = None

    def __init__(self) -> None:
        self.turns = 0
        self.ballast = b""
        self.lost: torpor.Lost | None = None

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> torpor.Reply:
        """Say what is there after a turn; `read` says it and leaves it as it is."""
        root, below = ctx.workspace / "root", ctx.workspace / "d" / "below"
        if message.text != "read":
            self.turns += 1
            self.ballast = bytes([self.turns]) * LARGE if message.text == "large" else b""
            below.parent.mkdir(exist_ok=True)
            (ctx.workspace / "same").write_text("same")
            root.write_text(f"root {self.turns}")
            below.write_text(f"below {self.turns}")
        found = sorted(
            str(path.relative_to(ctx.workspace))
            for path in ctx.workspace.rglob("*")
            if path.is_file()
        )
        return torpor.Reply(data={"turns": self.turns, "files": found})

    async def on_recover(self, lost: torpor.Lost) -> None:
        """Take note, here and in the state."""
        type(self).told.append(lost)
        self.lost = lost
        hook = type(self).hook
        if hook is not None:
            hook(self, lost)


class Silent(torpor.Agent):
    """Has no `on_recover`."""

    def __init__(self) -> None:
        self.turns = 0

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Count."""
        self.turns += 1
        (ctx.workspace / "turns").write_text(str(self.turns))
        return str(self.turns)


@dataclasses.dataclass
class Place:
    """A store, its shared storage, and sessions that come and go."""

    store: redis_store.RedisStore
    server: valkey.Server
    folder: pathlib.Path
    alive: list[activations.Activation]

    @property
    def storage(self) -> pathlib.Path:
        """The shared folder."""
        return self.folder / "storage"

    async def wake(
        self,
        key: records.SessionKey,
        *,
        agent: type[torpor.Agent] = Keeper,
        stored: Any = None,
        storage: pathlib.Path | None = None,
    ) -> activations.Activation:
        """Wake it in what is another process to it."""
        made = await activations.activate(
            stored or self.store,
            key,
            agent,
            self.folder,
            blob_store=local_blobs.LocalBlobStore(storage or self.storage),
        )
        self.alive.append(made)
        return made

    async def lived(
        self, turns: int, text: str = "small", agent: type[torpor.Agent] = Keeper
    ) -> records.SessionKey:
        """Return a session that had so many turns (turn n is version n + 1), and crashed."""
        key = await activations.new_session(self.store)
        here = await self.wake(key, agent=agent)
        for _ in range(turns):
            await here.send(text)
        await here.close()
        return key

    async def head(self, key: records.SessionKey) -> records.Head:
        """Return the head."""
        return await self.store.sessions.head(key)

    async def points(self, key: records.SessionKey) -> list[records.RestorePoint]:
        """Return the restore points, newest first."""
        return await self.store.sessions.restore_points(key)

    def blob(self, digest: str) -> pathlib.Path:
        """Return where a blob lies."""
        return self.storage / "acme" / "blobs" / digest[3:5] / digest

    def entry(self, digest: str, name: str) -> manifest.Entry:
        """Return an entry of a folder by the folder's manifest."""
        found = manifest.find(
            local_blobs.LocalBlobStore(self.storage), "acme", digest, name.encode()
        )
        assert found is not None
        return found

    async def events(self, key: records.SessionKey) -> list[messages.Event]:
        """Return the whole history, which has no gap."""
        page = await self.store.sessions.hot(key, after=0, limit=1_000)
        assert [event.seq for event in page.events] == list(range(1, page.next_seq))
        return page.events


@contextlib.asynccontextmanager
async def place(server: valkey.Server, folder: pathlib.Path) -> AsyncIterator[Place]:
    """Yield a place whose storage is known to the store; its sessions end with it."""
    server.call("DEL", keys.STORAGE)
    opened = redis_store.open(store_samples.deployment_at(server.url))
    here = Place(store=opened, server=server, folder=folder, alive=[])
    await storage_proof.establish(opened.catalog, local_blobs.LocalBlobStore(here.storage))
    try:
        yield here
    finally:
        for activation in here.alive:
            await activation.close()
        await opened.close()


def flip(path: pathlib.Path) -> None:
    """Change one bit in the middle of a file; once more, and it is as before."""
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


def truncate(path: pathlib.Path) -> None:
    """Cut a file's last byte off."""
    path.write_bytes(path.read_bytes()[:-1])


#: By name, what can become of a blob.
KINDS: dict[str, Callable[[pathlib.Path], None]] = {
    "flipped": flip,
    "truncated": truncate,
    "gone": pathlib.Path.unlink,
}


def do(place: Place, point: records.RestorePoint, part: str, kind: str = "flipped") -> None:
    """Damage one part of a version of a `Keeper`: state, root, folder, file, or the same file."""
    assert point.checkpoint is not None
    folder = place.entry(point.manifest, "d")
    digest = {
        "state": point.checkpoint.state,
        "root": point.manifest,
        "folder": folder.digest,
        "file": place.entry(folder.digest, "below").digest,
        "same": place.entry(point.manifest, "same").digest,
    }[part]
    KINDS[kind](place.blob(digest))


async def read(here: activations.Activation) -> dict[str, Any]:
    """Return what a `Keeper` says is there."""
    return (await here.send("read")).data
