"""A check of everything that is stored: sessions, indexes and blobs, of one tenant after the other.

It never writes into a session's head: what is damaged there is left to the session's next owner,
which is fenced. With `repair` it rebuilds what follows from heads, and moves files that are in the
way into quarantine.
"""

import asyncio
import contextlib
import fcntl
import pathlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from torpor import clock, errors
from torpor.storage import (
    contents,
    digests,
    disk_files,
    examination,
    findings,
    keyring,
    local_blobs,
    orphans,
    quarantine,
    records,
    redis_store,
    second_looks,
    storage_proof,
)

#: Sessions that are read at the same time: enough to hide a network's round trips.
SESSIONS_AT_ONCE = 8
#: Sessions without an index entry whose names are held, some 40 MB; `repair` holds none.
UNLISTED_MAX = 100_000
#: How long nobody has touched what is moved, and how long it then waits to be deleted.
GRACE_S = 7 * 86_400.0

T = TypeVar("T")
_What = findings.What


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to check, and whether to mend it."""

    #: Empty for all tenants.
    tenant: str = ""
    #: Empty for all sessions of the tenant; needs a tenant.
    session: str = ""
    repair: bool = False
    grace_s: float = GRACE_S


class Summary(msgspec.Struct, kw_only=True):
    """What was looked at, and what came of it."""

    tenants: int = 0
    sessions: int = 0
    #: Blobs that sessions name.
    blobs: int = 0
    #: Bytes of files that were read.
    bytes_read: int = 0
    #: By severity.
    found: dict[str, int] = msgspec.field(default_factory=dict)
    repaired: int = 0
    #: Findings that somebody has to do something about.
    remaining: int = 0
    #: Blobs that no session names, and that are younger than the grace time.
    young: orphans.Pile = msgspec.field(default_factory=orphans.Pile)
    #: Orphans that lie in quarantine, and those that were deleted from there.
    quarantined: orphans.Pile = msgspec.field(default_factory=orphans.Pile)
    purged: orphans.Pile = msgspec.field(default_factory=orphans.Pile)


class Fsck:
    """One run of the check."""

    def __init__(
        self,
        *,
        opened: redis_store.RedisStore,
        storage: pathlib.Path,
        masters: keyring.Keyring,
        plan: Plan,
        report: findings.Report,
        progress: Callable[[Summary], None] = lambda _: None,
        time: clock.Clock | None = None,
    ) -> None:
        self._store = opened
        self._inspection = opened.inspection
        self._storage = storage
        self._blobs = local_blobs.LocalBlobStore(storage)
        self._masters = masters
        self._plan = plan
        self._tell = report
        self._progress = progress
        self._looks = second_looks.SecondLooks(
            opened, opened.inspection, self._report, time or clock.SystemClock(), repair=plan.repair
        )
        self.summary = Summary()
        #: Living sessions that the index does not list, by tenant; past the bound only counted.
        self._unlisted: dict[str, list[records.SessionKey]] = {}
        self._unlisted_count = 0
        #: Tenants of which there is any head, also of a deleted session.
        self._inhabited: set[str] = set()

    async def run(self) -> Summary:
        """Check what the plan says.

        Raises:
            TenantNotFound, SessionNotFound, SessionDeleted: what the plan names is not there.
            FailedPrecondition: another run repairs.
            StoreUnavailable, StorageUnavailable
        """
        await storage_proof.prove(self._store.catalog, self._blobs)
        with _alone(self._storage) if self._plan.repair else contextlib.nullcontext():
            known = await self._store.catalog.tenants()
            if self._plan.tenant and self._plan.tenant not in known:
                raise errors.TenantNotFound(tenant=self._plan.tenant)
            server = await self._inspection.server()
            if self._plan.session:
                await self._one(records.SessionKey(self._plan.tenant, self._plan.session))
            else:
                await self._heads(known)
                for tenant in [self._plan.tenant] if self._plan.tenant else known:
                    await self._tenant(tenant, server)
        return self.summary

    def _report(self, finding: findings.Finding) -> None:
        found = self.summary.found
        found[finding.severity] = found.get(finding.severity, 0) + 1
        self.summary.repaired += finding.repaired
        self.summary.remaining += finding.remains
        self._tell(finding)

    def _count(self, seen: contents.Contents) -> None:
        self.summary.tenants += 1
        self.summary.blobs += len(seen)
        self.summary.bytes_read += seen.bytes_read

    # --- sessions ---------------------------------------------------------------------------------

    async def _one(self, key: records.SessionKey) -> None:
        (entry,) = await self._inspection.entries([key])
        if not entry.living:
            # Says which of the two it is.
            await self._store.sessions.head(key)
        if not entry.indexed:
            await self._enter(key)
        seen = contents.Contents(self._blobs, key.tenant)
        await self._examine([key], self._examiner(seen), {})
        await self._looks.settle()
        self._count(seen)

    async def _heads(self, known: Sequence[str]) -> None:
        """Walk over all heads: is each in its index, and is its tenant known?"""
        unknown = set[str]()
        async for page in self._inspection.heads(self._plan.tenant):
            for entry in page:
                tenant = entry.key.tenant
                self._inhabited.add(tenant)
                if tenant not in known and entry.living:
                    unknown.add(tenant)
                elif entry.living and not entry.indexed:
                    await self._enter(entry.key)
        if not self._plan.tenant:
            unknown |= {name for name in _folders(self._storage) if name not in known}
        for tenant in sorted(unknown):
            text = f"it has sessions or blobs and is unknown: `torpor tenants create {tenant}`"
            self._report(findings.in_tenant(_What.TENANT_UNKNOWN, tenant, text))

    async def _enter(self, key: records.SessionKey) -> None:
        """Tell of a session that listing leaves out; mend it or keep its name."""
        mended = self._plan.repair and await self._inspection.enter(key)
        if self._plan.repair and not mended:
            return
        text = "`torpor sessions ls` leaves it out" + ("; mended" if mended else "; use --repair")
        self._report(findings.of(_What.INDEX_MISSING, key, text, repaired=mended))
        if mended:
            return
        names = self._unlisted.setdefault(key.tenant, [])
        self._unlisted_count += 1
        if self._unlisted_count <= UNLISTED_MAX:
            names.append(key)

    async def _tenant(self, tenant: str, server: str) -> None:
        place = quarantine.Quarantine(self._storage / tenant)
        stored = (self._storage / tenant / "blobs").is_dir()
        # Before the sessions are read: what they name later was touched later, or by one of these.
        began_ns = await _blocking(self._storage, place.now_ns) if stored else 0
        purge = stored and await self._may_purge(tenant, place, began_ns)
        seen = contents.Contents(self._blobs, tenant)
        examiner, owners, whole = self._examiner(seen), dict[str, tuple[int, int]](), True
        async for page in self._sessions(tenant):
            whole &= await self._examine(page, examiner, owners)
        await self._looks.settle()
        self._count(seen)
        if not stored:
            return
        await storage_proof.prove(self._store.catalog, self._blobs)
        reason = await self._unjudged(tenant, server, whole)
        if reason:
            text = f"what nobody needs was not looked for: {reason}"
            self._report(findings.in_tenant(_What.ORPHANS_UNJUDGED, tenant, text))
            return
        sweep = orphans.Sweep(
            tenant_folder=self._storage / tenant,
            named=seen,
            began_ns=began_ns,
            grace_s=self._plan.grace_s,
            repair=self._plan.repair,
            owners=owners,
            purge=purge,
        )
        self._swept(tenant, await _blocking(self._storage, sweep.run))

    async def _sessions(self, tenant: str) -> AsyncIterator[list[records.SessionKey]]:
        """Yield all living sessions of a tenant, in pages; suspect entries that name none."""
        async for page in self._inspection.index(tenant):
            living = []
            for entry in await self._inspection.entries(page):
                if entry.living:
                    living.append(entry.key)
                else:
                    await self._looks.stale(entry.key)
            yield living
        # With `repair` they are in the index by now.
        yield self._unlisted.pop(tenant, [])

    def _examiner(self, seen: contents.Contents) -> examination.Examiner:
        return examination.Examiner(
            opened=self._store,
            inspection=self._inspection,
            seen=seen,
            keys=self._masters.for_tenant(seen.tenant),
        )

    async def _examine(
        self,
        page: list[records.SessionKey],
        examiner: examination.Examiner,
        owners: dict[str, tuple[int, int]],
    ) -> bool:
        """Examine sessions, several at a time; whether all of them are whole."""
        whole = True
        for begin in range(0, len(page), SESSIONS_AT_ONCE):
            batch = page[begin : begin + SESSIONS_AT_ONCE]
            for examined in await asyncio.gather(*map(examiner.examine, batch)):
                self.summary.sessions += examined.living
                whole &= examined.whole
                head = examined.head
                if head is not None and head.owner is not None:
                    owners[head.key.session] = (head.epoch, head.version)
                if examined.waits:
                    await self._looks.waiting(examined.key)
                for finding in examined.found:
                    self._report(await self._mended(finding))
            self._progress(self.summary)
        return whole

    async def _mended(self, finding: findings.Finding) -> findings.Finding:
        """Move a corrupt blob out of the way of a good one."""
        kinds = (_What.BLOB_CORRUPT, _What.SEGMENT_CORRUPT, _What.CHECKPOINT_CORRUPT)
        if not self._plan.repair or finding.what not in kinds or not digests.is_one(finding.where):
            return finding
        place = quarantine.Quarantine(self._storage / finding.tenant)
        aside = await _blocking(self._storage, lambda: place.set_aside(finding.where))
        if aside is None:
            return finding
        text = f"{finding.message}; moved to {aside}, so that a good one can take its place"
        return msgspec.structs.replace(finding, message=text)

    # --- what nobody needs ------------------------------------------------------------------------

    async def _may_purge(self, tenant: str, place: quarantine.Quarantine, now_ns: int) -> bool:
        """Whether nobody can need any more what earlier runs took for orphans.

        To be asked before sessions are read: a commit that made an owner leave this list names what
        it needs before that.
        """
        ledger = await _blocking(self._storage, place.ledger)
        if ledger is None or ledger.moved_ns >= now_ns - int(self._plan.grace_s * 1e9):
            return False
        for session, mark in ledger.owners.items():
            try:
                head = await self._store.sessions.head(records.SessionKey(tenant, session))
            except (errors.SessionNotFound, errors.SessionDeleted):
                continue
            except examination.UNDECODABLE:
                return False
            if head.owner is not None and (head.epoch, head.version) == mark:
                return False
        return True

    async def _unjudged(self, tenant: str, server: str, whole: bool) -> str:
        """Return why it is not known what all sessions of a tenant name; empty if it is."""
        if tenant not in self._inhabited:
            return "the store knows no session of a tenant that has blobs; is store_url right?"
        if not whole:
            return "not every session of the tenant is whole"
        if self._unlisted_count > UNLISTED_MAX:
            return "too many sessions are not in the index; use --repair"
        if await self._inspection.server() != server:
            return "the store was restarted meanwhile"
        return ""

    def _swept(self, tenant: str, swept: orphans.Swept) -> None:
        old, left = swept.orphans, swept.leftovers
        if left.count:
            text = f"{left.count} files of broken uploads, {left.size_bytes} bytes"
            text += "; deleted" if self._plan.repair else "; use --repair"
            self._pile(_What.UPLOAD_LEFTOVER, tenant, left, text, repaired=self._plan.repair)
        if old.count:
            text = f"{old.count} blobs that no session names, {old.size_bytes} bytes"
            if not self._plan.repair:
                text += "; use --repair"
            elif swept.moved.count:
                text += f"; {swept.moved.count} moved to quarantine, to be deleted by a later run"
            else:
                text += "; they wait until what is in quarantine can be deleted"
            moved = bool(swept.moved.count)
            self._pile(_What.ORPHAN_BLOB, tenant, old, text, repaired=moved)
        for total, pile in (
            (self.summary.young, swept.young),
            (self.summary.quarantined, swept.waiting),
            (self.summary.quarantined, swept.moved),
            (self.summary.purged, swept.purged),
        ):
            total.count += pile.count
            total.size_bytes += pile.size_bytes

    def _pile(
        self, what: findings.What, tenant: str, pile: orphans.Pile, text: str, *, repaired: bool
    ) -> None:
        self._report(
            findings.in_tenant(
                what,
                tenant,
                text,
                where=pile.example,
                repaired=repaired,
                count=pile.count,
                size_bytes=pile.size_bytes,
            )
        )


@contextlib.contextmanager
def _alone(storage: pathlib.Path) -> Iterator[None]:
    """Hold the deployment's one permission to repair: two runs would count each other's moves."""
    path = storage / ".torpor-fsck"
    try:
        file = path.open("a")
    except OSError as error:
        raise disk_files.storage_error(error, path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise errors.FailedPrecondition(
                f"another `torpor fsck --repair` works on {storage}; wait for it"
            ) from error
        yield


def _folders(storage: pathlib.Path) -> list[str]:
    """Return the names of folders that hold a tenant's blobs."""
    try:
        return [path.parent.name for path in storage.glob("*/blobs")]
    except OSError as error:
        raise disk_files.storage_error(error, storage) from error


async def _blocking(storage: pathlib.Path, work: Callable[[], T]) -> T:
    """Return what `work` returns, on a thread."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise disk_files.storage_error(error, error.filename or storage) from error
