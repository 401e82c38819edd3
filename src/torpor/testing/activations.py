"""A session's owner in this process, without Ray: for tests of what session processes do."""

import asyncio
import contextlib
import os
import pathlib

from torpor import clock, definition, deployment, ids, messages
from torpor.actors import (
    agent_thread,
    mailbox,
    output,
    ownership,
    protocol,
    recovery,
    residence,
    slot_board,
    stopwatch,
)
from torpor.storage import blobs, keyring, local_blobs, records, snapshot, store

AT_MS = 1_700_000_000_000
KEYS = keyring.TenantKeys(tenant="acme", signing_id="k1", keys={"k1": b"\1" * keyring.KEY_BYTES})
OWNER = records.Owner(node="node-1", incarnation="inc-1", actor="actor-1")
AGENT = records.AgentVersion(
    name="agent",
    version=1,
    import_path="unused:Agent",
    digest="",
    settings=definition.AgentSettings(),
    created_ms=AT_MS,
)


async def new_session(stored: store.Store) -> records.SessionKey:
    """Create a session of the tenant that `KEYS` are for."""
    key = records.SessionKey(KEYS.tenant, ids.random_id("session"))
    await stored.sessions.create(
        records.NewSession(
            key=key, agent=AGENT.name, agent_version=1, request_id="new", created_ms=AT_MS
        )
    )
    return key


async def claim(
    stored: store.Store,
    blob_store: blobs.BlobStore,
    key: records.SessionKey,
    *,
    time: clock.Clock | None = None,
) -> tuple[ownership.Ownership, records.Acquired]:
    """Take a session over from whoever has it."""
    owned = ownership.Ownership(
        store=stored,
        blobs=blob_store,
        keys=KEYS,
        clock=time or clock.SystemClock(),
        agent=AGENT,
    )
    return owned, await owned.claim(_claim_on(await stored.sessions.head(key)))


def _claim_on(head: records.Head) -> records.Acquire:
    return records.Acquire(
        key=head.key,
        observed_epoch=head.epoch,
        observed_incarnation=head.owner.incarnation if head.owner else "",
        owner=OWNER,
        nonce=ids.nonce(),
    )


class Activation:
    """A session that is resident in this process. Replaces `sys.stdout` and `sys.stderr`."""

    def __init__(
        self,
        owned: ownership.Ownership,
        agent: agent_thread.AgentThread,
        stored: store.Store,
        blob_store: blobs.BlobStore,
        folder: pathlib.Path,
        settings: definition.AgentSettings,
        snapshotter: snapshot.Snapshotter,
    ) -> None:
        key = owned.head.key
        slot = slot_of(folder, owned)
        self.workspace = slot / protocol.WORKSPACE
        place = deployment.Deployment(
            store_url="", storage=folder, scratch=folder, signing_key_file=folder / "unused"
        )
        claim = records.Acquire(
            key=key,
            observed_epoch=owned.head.epoch - 1,
            observed_incarnation="",
            owner=OWNER,
            nonce=owned.head.nonce,
        )
        self.owned = owned
        self.board = slot_board.SlotBoard(slot / protocol.BOARD, os.getpid())
        self.reader = slot_board.SlotBoardReader(slot / protocol.BOARD)
        self._log = output.SessionLog(output.log_folder(folder, key), owned.head.epoch)
        self.residence = residence.Residence(
            owned=owned,
            thread=agent,
            snapshotter=snapshotter,
            captures=output.Captures(self._log),
            board=self.board,
            store=stored,
            blobs=blob_store,
            settings=settings,
            spec=protocol.BootSpec(
                deployment=place,
                claim=claim,
                agent=AGENT,
                keys=KEYS,
                node_name="node-1",
                slot=slot,
            ),
            clock=clock.SystemClock(),
            watch=stopwatch.Stopwatch(),
        )
        self._running = asyncio.create_task(self.residence.run())

    def put(self, work: mailbox.Work, **how: object) -> "asyncio.Future[object]":
        """Queue work; returns what will be its answer."""
        return self.residence.put(work, **how).answer

    async def send(self, text: str, request_id: str = "") -> protocol.Delivered:
        """Have a message handled; raises what it is refused with."""
        request = protocol.Deliver(
            epoch=self.residence.epoch,
            message=messages.Message(text=text, request_id=request_id or ids.random_id("req")),
            body_digest=text,
            busy=protocol.BusyPolicy.ENQUEUE,
            deadline_s=60.0,
        )
        answer = protocol.accept(await self.put(request))
        assert isinstance(answer, protocol.Delivered)  # noqa: S101 - for the type checker
        return answer

    async def ended(self) -> None:
        """Wait until the activation is over."""
        await self._running

    async def close(self) -> None:
        """End it without a word to the store, as a crash would."""
        self._running.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
        finally:
            self._log.close()
            self.reader.close()


def slot_of(folder: pathlib.Path, owned: ownership.Ownership) -> pathlib.Path:
    """Return where an owner's activation has its workspace and its board."""
    return folder / f"slot-{owned.head.epoch}"


async def activate(
    stored: store.Store,
    key: records.SessionKey,
    agent: type[definition.Agent],
    folder: pathlib.Path,
    *,
    settings: definition.AgentSettings | None = None,
    blob_store: blobs.BlobStore | None = None,
) -> Activation:
    """Claim a session, bring it back and let it work in this process, in its workspace.

    Raises what waking raises; then nobody owns the session.
    """
    blob_store = blob_store or local_blobs.LocalBlobStore(folder)
    settings = settings or definition.AgentSettings()
    owned, acquired = await claim(stored, blob_store, key)
    waking = recovery.Waking(
        owned,
        stored,
        blob_store,
        slot_of(folder, owned) / protocol.WORKSPACE,
        settings.workspace_quota_bytes,
    )
    try:
        # A process has one working directory, and this one has many activations.
        with contextlib.chdir("."):
            thread = await waking.wake(acquired, agent, stopwatch.Stopwatch())
    except BaseException:
        await owned.abandon()
        raise
    return Activation(owned, thread, stored, blob_store, folder, settings, waking.snapshotter)
