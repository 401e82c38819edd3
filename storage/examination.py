"""Whether one session is whole: its records agree, and every blob that they name is there and good.

Sessions go on while they are looked at. So damage counts only if two looks in a row find it, and
nothing was committed in between.
"""

import asyncio
from collections.abc import Iterator

import msgspec

from torpor import errors
from torpor.storage import (
    contents,
    digests,
    envelope,
    findings,
    keyring,
    record_codec,
    records,
    redis_inspection,
    segments,
    storage_proof,
    store,
)

#: A session that commits faster than it can be read is left to another run after so many looks.
#: Each is quicker than the one before: what was found whole is not read again.
LOOKS_MAX = 6
#: Hot events that are held at the same time: at most 256 MiB, if all are the largest.
_HOT_EVENTS = 64
#: What decoding raises when bytes are not what a codec wrote.
UNDECODABLE = (ValueError, KeyError, TypeError, IndexError, msgspec.MsgspecError, errors.DataLoss)

_UNREADABLE = (errors.DataLoss, errors.StorageUnavailable)

_What = findings.What
_SEGMENT = (_What.SEGMENT_MISSING, _What.SEGMENT_CORRUPT)
_CHECKPOINT = (_What.CHECKPOINT_MISSING, _What.CHECKPOINT_CORRUPT)
_BLOB = (_What.BLOB_MISSING, _What.BLOB_CORRUPT)
_FROM_A_COPY = "restore the store from a copy"


class Moved(Exception):
    """The session was written to while it was looked at."""


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one session."""

    key: records.SessionKey
    #: None when it cannot be decoded, or there is none.
    head: records.Head | None = None
    found: list[findings.Finding] = []
    #: Whether there is such a session.
    living: bool = True
    #: Whether something waits that nobody may know of: there is work, and no owner in office.
    waits: bool = False

    @property
    def whole(self) -> bool:
        """Whether everything that it names is known and was read."""
        kinds = {found.what for found in self.found if found.remains}
        return kinds <= {_What.CHECKPOINT_INCOMPATIBLE, _What.INBOX_UNREMEMBERED}


class Examiner:
    """Looks at sessions of one tenant."""

    def __init__(
        self,
        *,
        opened: store.Store,
        inspection: redis_inspection.RedisInspection,
        seen: contents.Contents,
        keys: keyring.TenantKeys,
    ) -> None:
        self._store = opened
        self._inspection = inspection
        self._seen = seen
        self._keys = keys

    async def examine(self, key: records.SessionKey) -> Examined:
        """Return what two looks agree on.

        Raises:
            StoreUnavailable, StorageUnavailable
        """
        before: tuple[object, Examined] | None = None
        good = set[object]()
        for _ in range(LOOKS_MAX):
            try:
                mark, examined = await self._look(key, good)
            except (Moved, errors.SessionNotFound, errors.SessionDeleted):
                before = None
                continue
            if examined.whole:
                return examined
            if before is not None and before[0] == mark:
                # Where nothing is mounted everything seems to be missing.
                await storage_proof.prove(self._store.catalog, self._seen.store)
                return examined
            before = mark, examined
        text = "it changed each time it was looked at; look again with --session"
        return Examined(key=key, found=[findings.of(_What.SESSION_BUSY, key, text)])

    async def _look(self, key: records.SessionKey, good: set[object]) -> tuple[object, Examined]:
        """Return what a look found, and what must stay the same for it to hold.

        `good` has what earlier looks found whole.
        """
        look = await self._inspection.look(key)
        fields = record_codec.pairs(look.head)
        if not fields or b"d" in fields:
            return look.head, Examined(key=key, living=False)
        try:
            head = record_codec.head(key, look.head)
            points = await self._store.sessions.restore_points(key)
        except UNDECODABLE as error:
            text = f"its records cannot be decoded ({error!r}); {_FROM_A_COPY}"
            return look.head, Examined(
                key=key, found=[findings.of(_What.HEAD_UNREADABLE, key, text)]
            )
        if points[0].version != head.version:
            raise Moved
        found = list(_contradictions(head))
        found += _inbox(key, look)
        found += await self._hot(head)
        found += await asyncio.to_thread(lambda: list(self._cold(head, good)))
        found += await asyncio.to_thread(lambda: list(self._points(head, points, good)))
        in_office = head.owner is not None and await self._store.nodes.lease_stands(
            head.owner.node, head.owner.incarnation
        )
        if head.owner is not None and not in_office:
            text = f"its owner on node {head.owner.node} is lost; the next call takes over"
            found.append(findings.of(_What.OWNER_LAPSED, key, text))
        waits = bool(look.inbox) and head.status is not records.Status.PAUSED and not in_office
        mark = (head.version, head.next_seq, head.hot_from, head.cold_index, points)
        return mark, Examined(key=key, head=head, found=found, waits=waits)

    # --- history ----------------------------------------------------------------------------------

    async def _hot(self, head: records.Head) -> list[findings.Finding]:
        """Read the hot tail, in pages, and say where events are missing."""
        key, expected, after = head.key, head.hot_from, 0
        while True:
            try:
                page = await self._store.sessions.hot(key, after=after, limit=_HOT_EVENTS)
            except UNDECODABLE as error:
                text = f"events after {after} cannot be decoded ({error!r}); {_FROM_A_COPY}"
                return [findings.of(_What.HISTORY_CORRUPT, key, text, where=str(after + 1))]
            seen = (page.hot_from, page.next_seq, page.cold_index)
            if seen != (head.hot_from, head.next_seq, head.cold_index):
                raise Moved
            for event in page.events:
                if event.seq != expected:
                    return [_gap(key, expected, f"event {event.seq} stands in its place")]
                expected += 1
            if len(page.events) < _HOT_EVENTS:
                break
            after = page.events[-1].seq
        if expected != head.next_seq:
            return [_gap(key, expected, f"the head says that {head.next_seq - 1} is the last")]
        return []

    def _cold(self, head: records.Head, good: set[object]) -> Iterator[findings.Finding]:
        """Read all cold segments."""
        key, entries, last = head.key, list[segments.IndexEntry](), 0
        try:
            entries = segments.read_index(self._seen.store, key.tenant, head.cold_index)
        except _UNREADABLE as error:
            yield self._flaw(_SEGMENT, key, head.cold_index, "the index of cold history", error)
            return
        for entry in entries:
            last = entry.last_seq
            if entry.digest in good:
                continue
            try:
                segments.read(self._seen.store, key.tenant, entry)
            except _UNREADABLE as error:
                text = f"events {entry.first_seq} to {entry.last_seq}"
                yield self._flaw(_SEGMENT, key, entry.digest, text, error)
            else:
                self._seen.name(entry.digest)
                good.add(entry.digest)
        if head.cold_index:
            self._seen.name(head.cold_index)
        if last != head.hot_from - 1:
            yield _gap(key, last + 1, f"cold history ends before it, hot begins at {head.hot_from}")

    # --- states and files -------------------------------------------------------------------------

    def _points(
        self, head: records.Head, points: list[records.RestorePoint], good: set[object]
    ) -> Iterator[findings.Finding]:
        """Read what a wake restores, and what it goes back to if that is damaged."""
        flaws = [list(self._point(head.key, point, good)) for point in points]
        after, told = _after(points, flaws), set[str]()
        for point, bad in zip(points, flaws, strict=True):
            for flaw in bad:
                if flaw.where in told:
                    continue
                told.add(flaw.where)
                if flaw.severity is not findings.Severity.DAMAGE:
                    yield flaw
                elif point is points[0]:
                    yield msgspec.structs.replace(flaw, message=f"{flaw.message}; {after}")
                else:
                    message = f"{flaw.message}; no wake can go back to it, further turns replace it"
                    yield msgspec.structs.replace(
                        flaw, severity=findings.Severity.WARNING, message=message
                    )

    def _point(
        self, key: records.SessionKey, point: records.RestorePoint, good: set[object]
    ) -> Iterator[findings.Finding]:
        of_version = f"of version {point.version}"
        if point.checkpoint is not None and point.checkpoint not in good:
            try:
                self._state(key, point.checkpoint, point.inline_state)
                good.add(point.checkpoint)
            except (errors.CheckpointIncompatible, errors.CheckpointCorrupt) as error:
                # Its bytes are those that were written.
                where, other = point.checkpoint.state, isinstance(error, errors.CheckpointCorrupt)
                what = _What.CHECKPOINT_UNVERIFIED if other else _What.CHECKPOINT_INCOMPATIBLE
                yield findings.of(what, key, error.message, where=where)
            except _UNREADABLE as error:
                text = f"the state {of_version}"
                yield self._flaw(_CHECKPOINT, key, point.checkpoint.state, text, error)
        try:
            for flaw in self._seen.folder(point.manifest):
                text = f"{flaw.path!r} {of_version}"
                yield self._flaw(_BLOB, key, flaw.digest, text, flaw.error)
        except errors.BlobCorrupt as error:
            yield self._flaw(_BLOB, key, point.manifest, f"the files {of_version}", error)

    def _state(
        self, key: records.SessionKey, reference: records.CheckpointRef, inline: bytes | None
    ) -> None:
        """Verify a state; nothing of it is decoded. It is held in memory meanwhile."""
        if reference.inline and inline is None:
            raise errors.BlobMissing("it is not in the store", digest=reference.state)
        sealed = inline
        if not reference.inline:
            sealed = self._seen.store.get(
                key.tenant, reference.state, bytes_max=envelope.ENVELOPE_BYTES_MAX
            )
            self._seen.name(reference.state)
        if sealed is None or digests.of(sealed) != reference.state:
            raise errors.BlobCorrupt("what lies in the store is another one")
        envelope.open(sealed, reference, self._keys)

    def _flaw(
        self,
        kinds: tuple[findings.What, findings.What],
        key: records.SessionKey,
        digest: str,
        text: str,
        error: errors.TorporError,
    ) -> findings.Finding:
        """Return what an error says of a blob; the blob stays named, so that nothing takes it."""
        self._seen.doubt(digest)
        missing, corrupt = kinds
        if isinstance(error, errors.BlobMissing):
            return findings.of(missing, key, f"{text} is missing", where=digest)
        if isinstance(error, errors.StorageUnavailable):
            kinds_text = f"{text} cannot be read: {error.message}"
            return findings.of(_What.BLOB_UNREADABLE, key, kinds_text, where=digest)
        why = error.message.rstrip(".")
        return findings.of(corrupt, key, f"{text}: {why}", where=digest)


def _after(points: list[records.RestorePoint], flaws: list[list[findings.Finding]]) -> str:
    """Say what the next wake makes of it, as `torpor.actors.recovery` does it."""
    stateless = {
        point.version
        for point, bad in zip(points, flaws, strict=True)
        if any(flaw.what in _CHECKPOINT for flaw in bad)
    }
    for point, bad in zip(points, flaws, strict=True):
        if any(flaw.what is _What.BLOB_UNREADABLE for flaw in bad):
            # What cannot be read may be whole: nothing is given up for it.
            return "it will not wake until the storage can read all that is named here"
        if not any(flaw.severity is findings.Severity.DAMAGE for flaw in bad):
            return f"the next wake goes back to version {point.version}"
    for point in points:
        if point.version not in stateless:
            return f"the next wake restores version {point.version} without what is damaged"
    return "no state that is kept is whole, and it will not wake: bring one back from a copy"


def _contradictions(head: records.Head) -> Iterator[findings.Finding]:
    """Say which numbers of a head cannot be true together."""
    ref = head.checkpoint
    facts = {
        f"hot begins at {head.hot_from}, the next seq is {head.next_seq}": (
            1 <= head.hot_from <= head.next_seq
        ),
        f"hot begins at {head.hot_from}, the index of cold history is {head.cold_index!r}": (
            (head.hot_from > 1) == bool(head.cold_index)
        ),
        f"it is at version {head.version}": head.version >= 1,
        "it has a nonce without an owner, or an owner without a nonce": (
            bool(head.nonce) == (head.owner is not None)
        ),
        "its checkpoint is newer than the session": (
            ref is None or (ref.version <= head.version and ref.epoch <= head.epoch)
        ),
    }
    for text, holds in facts.items():
        if not holds:
            message = f"its head contradicts itself: {text}; {_FROM_A_COPY}"
            yield findings.of(_What.HEAD_INCONSISTENT, head.key, message)


def _inbox(key: records.SessionKey, look: redis_inspection.Look) -> Iterator[findings.Finding]:
    """Say what waits and cannot be read, or would be run twice if it were sent again."""
    remembered = set(look.remembered)
    for entry in look.inbox:
        raw = entry.partition(b"\0")[0]
        request_id = raw.decode(errors="backslashreplace")
        try:
            record_codec.items([entry])
        except UNDECODABLE as error:
            text = f"a message that waits cannot be decoded ({error!r}); {_FROM_A_COPY}"
            yield findings.of(_What.INBOX_CORRUPT, key, text, where=request_id)
        if raw not in remembered:
            text = "a message waits whose request is not remembered: do not send it again"
            yield findings.of(_What.INBOX_UNREMEMBERED, key, text, where=request_id)


def _gap(key: records.SessionKey, seq: int, why: str) -> findings.Finding:
    text = f"event {seq} is missing from the history: {why}; {_FROM_A_COPY}"
    return findings.of(_What.HISTORY_GAP, key, text, where=str(seq))
