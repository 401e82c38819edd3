"""The workspaces that a node keeps after their sessions have left it.

A session that leaves in order describes its workspace (`kept_description`); once its process is
proven dead the node moves both here, and back into the slot in which the session next wakes on this
node. Nothing is believed without a look at every file: as it is put back, or, where that would take
long, as it is kept. Everything is moved by renaming, so a crash leaves a workspace whole, in one
place, or what the next start removes.
"""

import collections
import contextlib
import logging
import os
import pathlib
import threading

from torpor import clock, errors
from torpor.storage import (
    blobs,
    kept_description,
    records,
    restore,
    workspace_scan,
    workspace_tree,
    workspace_watch,
)

log = logging.getLogger(__name__)

#: In a slot's folder: the workspace, and what was kept of an earlier activation.
WORKSPACE = "workspace"
KEPT = "kept"
#: Beside a kept workspace whose files were all looked at since its session's process is dead.
LOOKED = "looked"
#: Sessions that one node keeps a workspace of: more than it hosts in a day.
SESSIONS_MAX = 10_000
#: All kept workspaces together, of what would be free on the disk without them.
DISK_SHARE = 0.25
#: A session that nobody calls for a day pays for a restore, and one that was deleted is gone.
KEPT_MS = 24 * 3_600_000
_TRASH = ".trash"


class KeptWorkspaces:
    """What lies in `root`, a folder of one node on the file system of its slots. Blocks."""

    def __init__(self, root: pathlib.Path, time: clock.Clock) -> None:
        self._root = root
        self._clock = time
        #: The least recently used first.
        self._kept: collections.OrderedDict[records.SessionKey, kept_description.Head] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def keep(self, slot: pathlib.Path, key: records.SessionKey) -> bool:
        """Move a session's workspace out of its slot, if it left in order; True if it did.

        To be called only once nothing can write into the slot's folder any more. What a slot was
        given and has not touched goes back, too. The slot's folder is left to its owner.
        """
        source = slot if (slot / kept_description.NAME).exists() else slot / KEPT
        head = kept_description.head(source)
        if head is None or head.key != key:
            return False
        with self._lock:
            self._drop(key)
            place = self._place(key)
            try:
                place.mkdir(mode=0o700, parents=True)
                # The description comes last: without it the workspace counts for nothing.
                for name in (WORKSPACE, kept_description.NAME):
                    (source / name).rename(place / name)
            except OSError as error:
                log.warning("%s is not kept: %s", key, error, extra={"action": "not_kept"})
                self._drop(key)
                return False
            self._kept[key] = head
        return True

    def look(self, key: records.SessionKey) -> None:
        """Take note that all files of a large workspace are as described, so that no wake has to.

        Nobody has anything of it open, and under its new name nobody looks for it.
        """
        head, place = self._kept.get(key), self._place(key)
        if head is None or head.entries < workspace_watch.ENTRIES_MIN:
            return
        with contextlib.suppress(OSError, errors.TorporError):
            known = kept_description.read(place, key)
            # What has other names may be changed by them, at any time.
            if known is None or workspace_tree.has_links(known):
                return
            if workspace_scan.Scan().run(place / WORKSPACE, known) is known:
                with self._lock:
                    # It may have been taken meanwhile, and have come back.
                    if self._kept.get(key) is head:
                        (place / LOOKED).touch()

    def sessions(self) -> list[records.SessionKey]:
        """Return whose workspaces are kept."""
        with self._lock:
            return list(self._kept)

    def __contains__(self, key: records.SessionKey) -> bool:
        """Whether something is kept of a session; does not block."""
        return key in self._kept

    def take(self, key: records.SessionKey, slot: pathlib.Path) -> bool:
        """Move the session's workspace into a new slot, where `put_back` looks at it."""
        with self._lock:
            if self._kept.pop(key, None) is None:
                return False
            try:
                self._place(key).rename(slot / KEPT)
            except OSError:
                # Whatever it is, the session wakes from what is stored.
                self._drop(key)
                return False
            return True

    def forget(self, key: records.SessionKey) -> None:
        """Keep nothing of a session any more; the next `trim` frees the disk."""
        with self._lock:
            self._drop(key)

    def trim(self) -> None:
        """Remove what is beyond the bounds, the least recently used first, and free the disk.

        What the disk refuses is tried again the next time.
        """
        try:
            self._trim()
        except OSError as error:
            log.warning("not trimmed: %s", error, extra={"action": "not_trimmed"})

    def _trim(self) -> None:
        with self._lock:
            budget = self._budget_bytes()
            used = sum(head.disk_bytes for head in self._kept.values())
            oldest_ms = self._clock.now_ms() - KEPT_MS
            for key, head in list(self._kept.items()):
                # One that came back from a slot that had not touched it is older than its place.
                if used > budget or len(self._kept) > SESSIONS_MAX or head.at_ms <= oldest_ms:
                    used -= head.disk_bytes
                    self._drop(key)
        trash = self._root / _TRASH
        for folder in trash.iterdir() if trash.exists() else ():
            _remove(folder)

    def clean_leftovers(self) -> None:
        """Take stock of what an earlier life of the node kept; removes what is not whole."""
        found: list[kept_description.Head] = []
        for place in self._root.glob("[!.]*/*"):
            head = kept_description.head(place)
            if head is not None and self._place(head.key) == place:
                found.append(head)
            else:
                self._discard(place)
        with self._lock:
            found.sort(key=lambda head: head.at_ms)
            self._kept = collections.OrderedDict((head.key, head) for head in found)
        self.trim()

    def _budget_bytes(self) -> int:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.statvfs(self._root)
        kept = sum(head.disk_bytes for head in self._kept.values())
        return int((status.f_bavail * status.f_frsize + kept) * DISK_SHARE)

    def _place(self, key: records.SessionKey) -> pathlib.Path:
        return self._root / key.tenant / key.session

    def _drop(self, key: records.SessionKey) -> None:
        self._kept.pop(key, None)
        self._discard(self._place(key))

    def _discard(self, place: pathlib.Path) -> None:
        """Take a folder out of the way; removing its files may take long, and is `trim`'s work."""
        trash = self._root / _TRASH
        try:
            trash.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.rename(trash / os.urandom(8).hex())
        except FileNotFoundError:
            return
        except OSError as error:
            # What cannot be moved away is in the way of what is kept next, and of nothing else.
            log.warning("%s stays: %s", place, error, extra={"action": "not_discarded"})


def put_back(
    slot: pathlib.Path,
    key: records.SessionKey,
    digest: str,
    store: blobs.BlobStore,
) -> workspace_tree.Folder | None:
    """Make the slot's workspace of what was kept, as the manifest `digest` describes it.

    Returns None if nothing was kept that is beyond doubt: then `restore` has to make it.
    """
    kept = slot / KEPT
    known = kept_description.read(kept, key)
    if known is None:
        return None
    # From here on it is not what was described; a crash must not let it be taken for that.
    (kept / kept_description.NAME).unlink()
    return restore.put_right(
        kept / WORKSPACE,
        known,
        digest,
        slot / WORKSPACE,
        store,
        key.tenant,
        looked=(kept / LOOKED).exists(),
    )


def _remove(folder: pathlib.Path) -> None:
    """Remove a folder, whatever the permissions of those in it; what resists is tried again."""
    with contextlib.suppress(OSError):
        restore.discard(folder)
