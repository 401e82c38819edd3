"""Storing a workspace as it is now, at a cost that follows what has changed."""

import os
import pathlib
import stat
import time

import blake3
import msgspec

from torpor import errors
from torpor.storage import (
    blobs,
    digests,
    disk_files,
    manifest,
    workspace_scan,
    workspace_tree,
    workspace_watch,
)

#: Paths that a snapshot names, each of changes and of files skipped; the rest is only counted.
NAMED_PATHS_MAX = 1_000


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A workspace that is stored; it becomes true with the commit that names its manifest."""

    #: Digest of the root's manifest; empty for an empty workspace.
    manifest: str
    #: Files, links and folders.
    entries: int
    #: Of all files together.
    size_bytes: int
    #: To be adopted once the commit has taken place.
    tree: workspace_tree.Folder
    #: Files and manifests that were handed to the storage for it.
    written_bytes: int = 0
    #: Relative paths added, changed or removed, at most `NAMED_PATHS_MAX` of them. A folder counts
    #: when it is new, has other permissions, or is gone (then without its content).
    changed: tuple[str, ...] = ()
    changed_total: int = 0
    #: New sockets, pipes and devices, which are not kept.
    skipped: tuple[str, ...] = ()


class Snapshotter:
    """Takes snapshots of one live workspace. Blocks: use it from one thread at a time."""

    def __init__(
        self, root: pathlib.Path, store: blobs.BlobStore, tenant: str, quota_bytes: int
    ) -> None:
        self._root = root
        self._store = store
        self._tenant = tenant
        self._quota_bytes = quota_bytes
        self._published = workspace_tree.EMPTY
        self._restored: workspace_tree.Folder | None = None
        self._watch: workspace_watch.Watch | None = None

    def watch(self, tree: workspace_tree.Folder) -> None:
        """Have the kernel tell what is touched of a tree of which nobody has anything open yet."""
        self._watch = workspace_watch.Watch.worth_having(self._root, tree)

    def adopt(self, tree: workspace_tree.Folder) -> None:
        """Take note that a commit names this tree: of a snapshot that was committed, or a restore.

        Later snapshots store what differs from it. What was stored for a commit that did not take
        place is stored again by the next one, so gc may have it.
        """
        self._published = tree
        self._restored = self._restored or tree

    @property
    def adopted(self) -> workspace_tree.Folder:
        """What the last commit names, as it lies on the disk."""
        return self._published

    @property
    def restored(self) -> workspace_tree.Folder:
        """What was adopted first: the files as they were before anything ran among them."""
        return self._restored or workspace_tree.EMPTY

    def snapshot(self) -> Snapshot:
        """Store what differs from the adopted tree.

        Raises:
            WorkspaceQuotaExceeded: nothing was written.
            WorkspaceUnreadable: a file or folder cannot be read.
            StorageFull, StorageUnavailable: nothing is promised; the next call tries again.
        """
        now_ns = time.time_ns()
        try:
            found, entries = self._scan()
        except OSError as error:
            raise disk_files.storage_error(error, self._root) from error
        if found.size_bytes > self._quota_bytes:
            raise errors.WorkspaceQuotaExceeded(
                f"the workspace has {found.size_bytes} bytes of files, its quota is "
                f"{self._quota_bytes}; the turn's file changes were not kept",
                size_bytes=found.size_bytes,
                quota_bytes=self._quota_bytes,
            )
        if isinstance(found, workspace_tree.Folder):
            return Snapshot(
                manifest=found.digest,
                entries=entries,
                size_bytes=found.size_bytes,
                tree=found,
            )
        with self._store.upload(self._tenant) as upload:
            writing = _Writing(self._root, upload, now_ns)
            tree = writing.folder(found)
        return Snapshot(
            manifest=tree.digest,
            entries=entries,
            size_bytes=tree.size_bytes,
            tree=tree,
            written_bytes=writing.written_bytes,
            changed=tuple(writing.changed),
            changed_total=writing.changed_total,
            skipped=tuple(writing.skipped),
        )

    def _scan(self) -> tuple[workspace_tree.Folder | workspace_scan.Draft, int]:
        """Return what differs from the adopted tree, and how many files and folders there are."""
        if self._watch is not None:
            self._watch.listen()
            scan = workspace_scan.Scan(self._watch.left_alone)
            found = scan.run(self._root, self._published)
            if isinstance(found, workspace_tree.Folder) or not found.has_links():
                return found, scan.entries
            # Its other names may be in folders that were left alone.
            self._watch.close()
            self._watch = None
        scan = workspace_scan.Scan()
        return scan.run(self._root, self._published), scan.entries


class _Writing:
    """What one snapshot stores."""

    def __init__(self, root: pathlib.Path, upload: blobs.Upload, now_ns: int) -> None:
        self._root = root
        self._upload = upload
        self._now_ns = now_ns
        self.written_bytes = 0
        self.changed: list[str] = []
        self.changed_total = 0
        self.skipped: list[str] = []

    def folder(self, draft: workspace_scan.Draft) -> workspace_tree.Folder:
        """Store a folder that differs, after everything below it."""
        known, stamps = draft.known, dict[str, workspace_tree.Stamp | None](draft.stamps)
        entries = dict(known.entries)
        for name in draft.gone:
            del entries[name]
            self._note(draft.path + name)
        for name in draft.dirty:
            stamps[name] = workspace_tree.settled(draft.stamps[name], self._now_ns)
            try:
                entry = self._entry(draft, name)
            except OSError as error:
                if error.errno not in workspace_scan.VANISHED:
                    raise workspace_scan.unreadable(draft.path + name, error) from error
                entry = None
                del stamps[name]
            self._replace(entries, draft.path, name, entry)
        folders: dict[str, workspace_tree.Folder] = {}
        for name, child in draft.folders.items():
            if known.stamps.get(name) != draft.stamps[name]:
                stamps[name] = workspace_tree.settled(draft.stamps[name], self._now_ns)
            stored = self.folder(child) if isinstance(child, workspace_scan.Draft) else child
            folders[name] = stored
            entry = _folder_entry(name, draft.stamps[name], stored)
            was = entries.get(name)
            if was is None or was.kind is not manifest.Kind.FOLDER or was.mode != entry.mode:
                self._note(draft.path + name)
            if was != entry:
                entries[name] = entry
        pages, digest = workspace_tree.paginate(entries.values(), known, self._put)
        return workspace_tree.Folder(
            stamps=stamps,
            entries=entries,
            folders=folders,
            pages=pages,
            digest=digest,
            size_bytes=sum(page.size_bytes for page in pages),
        )

    def _entry(self, draft: workspace_scan.Draft, name: str) -> manifest.Entry | None:
        """Return what to store for a file or link, its content stored; None for what is neither."""
        stamp, path = draft.stamps[name], self._root / draft.path / name
        mode, raw = stat.S_IMODE(stamp[4]) & 0o777, os.fsencode(name)
        if stat.S_ISREG(stamp[4]):
            was = draft.known.entries.get(name)
            if was is not None and _perhaps_same(was, stamp, draft.known.stamps.get(name)):
                digest, size = digest_of_file(path)
                if digest == was.digest:
                    return msgspec.structs.replace(was, mode=mode) if was.mode != mode else was
            digest, size = self._put_file(path)
            return manifest.Entry(
                name=raw, kind=manifest.Kind.FILE, mode=mode, size_bytes=size, digest=digest
            )
        if stat.S_ISLNK(stamp[4]):
            target = os.fsencode(path.readlink())
            return manifest.Entry(
                name=raw, kind=manifest.Kind.LINK, mode=mode, size_bytes=0, target=target
            )
        self.skipped += [draft.path + name] * (len(self.skipped) < NAMED_PATHS_MAX)
        return None

    def _replace(
        self,
        entries: dict[str, manifest.Entry],
        path: str,
        name: str,
        entry: manifest.Entry | None,
    ) -> None:
        was = entries.get(name)
        if entry == was:
            return
        self._note(path + name)
        if entry is None:
            del entries[name]
        else:
            entries[name] = entry

    def _note(self, path: str) -> None:
        self.changed_total += 1
        if len(self.changed) < NAMED_PATHS_MAX:
            self.changed.append(path)

    def _put(self, data: bytes) -> str:
        self.written_bytes += len(data)
        return self._upload.put(data)

    def _put_file(self, path: pathlib.Path) -> tuple[str, int]:
        digest, size = self._upload.put_file(path)
        self.written_bytes += size
        return digest, size


def _folder_entry(
    name: str, stamp: workspace_tree.Stamp, stored: workspace_tree.Folder
) -> manifest.Entry:
    return manifest.Entry(
        name=os.fsencode(name),
        kind=manifest.Kind.FOLDER,
        mode=stat.S_IMODE(stamp[4]) & 0o777,
        size_bytes=stored.size_bytes,
        digest=stored.digest,
    )


def _perhaps_same(
    was: manifest.Entry, stamp: workspace_tree.Stamp, old: workspace_tree.Stamp | None
) -> bool:
    """Whether the content may be what is stored, so that looking may save writing."""
    if was.kind is not manifest.Kind.FILE or was.size_bytes != stamp[2]:
        return False
    return old is None or old[0] == stamp[0]


def digest_of_file(path: pathlib.Path) -> tuple[str, int]:
    """Return the digest of a file's content and its size in bytes."""
    hasher, size = blake3.blake3(), 0
    for piece in disk_files.read_pieces(path):
        hasher.update(piece)
        size += len(piece)
    return digests.name(hasher), size
