"""Files of a tenant that nobody needs: blobs that no session names, and half-written uploads.

What an upload left half written is deleted once it is old. Nobody ever read it, and an upload that
goes on with it after all finds it gone, fails, and so its turn is refused, not lost.
"""

import os
import pathlib

import msgspec

from torpor.storage import contents, digests, quarantine

#: An upload that is under way has written something since, whatever grace time is asked for.
UPLOAD_S_MAX = 3_600.0


class Pile(msgspec.Struct, kw_only=True):
    """Files, counted."""

    count: int = 0
    size_bytes: int = 0
    #: One of them.
    example: str = ""

    def add(self, path: str, size_bytes: int) -> None:
        """Count one."""
        self.count += 1
        self.size_bytes += size_bytes
        self.example = self.example or path


class Swept(msgspec.Struct, kw_only=True):
    """What a sweep of one tenant found and did."""

    #: Half-written uploads that are old.
    leftovers: Pile = msgspec.field(default_factory=Pile)
    #: Blobs that no session names, and that nobody has touched for the grace time.
    orphans: Pile = msgspec.field(default_factory=Pile)
    #: Those of them that are in quarantine now.
    moved: Pile = msgspec.field(default_factory=Pile)
    #: Blobs and uploads that are too young to be judged.
    young: Pile = msgspec.field(default_factory=Pile)
    #: Orphans of earlier runs, in quarantine still.
    waiting: Pile = msgspec.field(default_factory=Pile)
    #: Those that were deleted.
    purged: Pile = msgspec.field(default_factory=Pile)


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """One run's look at one tenant's files. Blocks, and raises OSError."""

    tenant_folder: pathlib.Path
    #: Everything that any session of the tenant names.
    named: contents.Contents
    #: When the run began; by the storage's clock.
    began_ns: int
    #: What was touched since so long before is not judged.
    grace_s: float
    repair: bool
    #: Who is in office now; looked up after `before_ns` was taken.
    owners: quarantine.Owners
    #: Whether orphans of earlier runs may be deleted.
    purge: bool

    @property
    def before_ns(self) -> int:
        """What was touched since then is not judged."""
        return self.began_ns - int(self.grace_s * 1e9)

    def run(self) -> Swept:
        """Look at every file and, with `repair`, move and delete."""
        swept, place = Swept(), quarantine.Quarantine(self.tenant_folder)
        self._condemned(place, swept)
        begun = False
        for entry in quarantine.files_below(self.tenant_folder / "blobs"):
            digest = entry.name if digests.is_one(entry.name) else ""
            if digest and digest in self.named:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if status.st_mtime_ns >= self.before_ns:
                swept.young.add(entry.path, status.st_size)
            elif not digest:
                self._leftover(entry, status, swept)
            else:
                swept.orphans.add(entry.path, status.st_size)
                # One batch at a time: those who might need it are written down with it.
                if self.repair and not swept.waiting.count:
                    begun = begun or place.open_ledger(self.owners)
                    if begun and place.condemn(digest, self.before_ns):
                        swept.moved.add(entry.path, status.st_size)
        if begun:
            place.close_ledger()
        return swept

    def _condemned(self, place: quarantine.Quarantine, swept: Swept) -> None:
        for entry in place.condemned():
            size_bytes = entry.stat(follow_symlinks=False).st_size
            # What is named was put back when it was read; this one is a copy of what is there.
            if self.purge and self.repair:
                place.purge(entry.name)
                swept.purged.add(entry.path, size_bytes)
            else:
                swept.waiting.add(entry.path, size_bytes)
        if self.repair and self.purge:
            place.end_ledger()
        elif self.repair and swept.waiting.count:
            # Only if there is none: somebody removed it, and the wait begins anew.
            place.open_ledger(self.owners)

    def _leftover(self, entry: os.DirEntry[str], status: os.stat_result, swept: Swept) -> None:
        # Only what uploads write is theirs; a file that somebody put here is nobody's business.
        old = status.st_mtime_ns < self.began_ns - int(UPLOAD_S_MAX * 1e9)
        if not old or not entry.name.startswith((".tmp-", ".clock-")):
            return
        swept.leftovers.add(entry.path, status.st_size)
        if self.repair:
            pathlib.Path(entry.path).unlink(missing_ok=True)
