"""Where a tenant's files go that are in the way: moved, so that a wrong judgement can be undone.

    <tenant>/quarantine/corrupt/<digest>.<random>   blobs whose bytes are not what their name says
    <tenant>/quarantine/orphans/<xx>/<digest>       blobs that no session names
    <tenant>/quarantine/owners                      who was in office when they were moved

A corrupt blob makes room for a good one: an upload takes a blob of the same name and size for it.
It is never deleted.

An orphan is moved, and deleted by a later run at the earliest. A reader that misses a blob looks
here and puts it back, so moving one that is needed after all costs a reader some milliseconds.
Who might still need it? An upload touches what it finds, so only who touched it before the run
began, and has not committed since: an owner that is stopped in the middle of a turn, for however
long. So the run writes down who is in office and at which version. As long as one of them is there
still, at that version, nothing is deleted. Once it has committed again, or lost its office, a
commit of that old turn has come, and is seen by a check that begins afterwards, or will never come.
No clock has a say in that. The grace time is for those who go back: a store that fails over to a
replica without the last commits, or is restored from a copy, names again what was superseded.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping

import blake3
import msgspec

from torpor import errors, ids
from torpor.storage import digests, disk_files

FOLDER = "quarantine"
#: The longest list of owners that is read: 100,000 sessions in office.
_OWNERS_BYTES_MAX = 16 << 20

#: Session → epoch, version.
Owners = Mapping[str, tuple[int, int]]


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """When blobs were moved last, and who was in office before."""

    owners: Owners
    #: By the storage's clock.
    moved_ns: int


class Quarantine:
    """The quarantine of one tenant. All methods block and raise OSError."""

    def __init__(self, tenant_folder: pathlib.Path) -> None:
        self._blobs = tenant_folder / "blobs"
        self._folder = tenant_folder / FOLDER
        self._ledger = self._folder / "owners"

    def now_ns(self) -> int:
        """Return the time by the clock of the storage, which is the one that ages are told by."""
        probe = self._blobs / ids.random_id(".clock")
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)
            probe.unlink()

    # --- corrupt blobs ----------------------------------------------------------------------------

    def set_aside(self, digest: str) -> pathlib.Path | None:
        """Move a corrupt blob away; returns where it is now, None if it is gone or whole."""
        path = blob_path(self._blobs, digest)
        if not path.exists() or is_whole(path):
            return None
        aside = self._folder / "corrupt" / f"{digest}.{os.urandom(4).hex()}"
        aside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.rename(aside)
        if is_whole(aside):
            # Meanwhile an upload put a good one into its place.
            _link_back(aside, path)
            return None
        return aside

    # --- orphans ----------------------------------------------------------------------------------

    def ledger(self) -> Ledger | None:
        """Return what is known of orphans that were moved and not deleted yet; None if none were.

        Raises:
            BlobCorrupt: it cannot be read.
        """
        try:
            with self._ledger.open("rb") as file:
                moved_ns = os.fstat(file.fileno()).st_mtime_ns
                text = file.read(_OWNERS_BYTES_MAX)
        except FileNotFoundError:
            return None
        try:
            owners = msgspec.json.decode(text, type=dict[str, tuple[int, int]])
        except msgspec.MsgspecError as error:
            raise errors.BlobCorrupt(
                f"{self._ledger} does not say who was in office; remove it, and the orphans beside "
                "it wait for another grace time"
            ) from error
        return Ledger(owners=owners, moved_ns=moved_ns)

    def open_ledger(self, owners: Owners) -> bool:
        """Write down who is in office, before an orphan moves; False if a ledger is there."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = self._folder / ids.random_id(".owners")
        with written.open("xb") as file:
            file.write(msgspec.json.encode(owners))
            file.flush()
            os.fsync(file.fileno())
        try:
            self._ledger.hardlink_to(written)
        except FileExistsError:
            return False
        finally:
            written.unlink()
        sync_folder(self._folder)
        return True

    def close_ledger(self) -> None:
        """Let the grace time begin: all that this run moves has been moved."""
        os.utime(self._ledger)

    def condemn(self, digest: str, before_ns: int) -> bool:
        """Move an orphan that nobody has touched since; False, and it stays, if somebody has."""
        path = blob_path(self._blobs, digest)
        aside = blob_path(self._folder / "orphans", digest)
        aside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if path.lstat().st_mtime_ns >= before_ns:
                return False
            path.rename(aside)
        except FileNotFoundError:
            return False
        # An upload may have touched it between the look and the move; after the move it finds none.
        if aside.lstat().st_mtime_ns >= before_ns:
            _link_back(aside, path)
            return False
        return True

    def condemned(self) -> Iterator[os.DirEntry[str]]:
        """Yield the orphans that are here."""
        yield from files_below(self._folder / "orphans")

    def purge(self, digest: str) -> None:
        """Delete an orphan for good."""
        blob_path(self._folder / "orphans", digest).unlink(missing_ok=True)

    def end_ledger(self) -> None:
        """Forget who was in office: there is no orphan left here."""
        self._ledger.unlink(missing_ok=True)


def put_back(tenant_folder: pathlib.Path, digest: str) -> bool:
    """Put an orphan that somebody needs back into its place, if it is whole; whether it is there.

    Raises:
        OSError: the storage cannot be read or written.
    """
    aside = blob_path(tenant_folder / FOLDER / "orphans", digest)
    path = blob_path(tenant_folder / "blobs", digest)
    try:
        if not is_whole(aside):
            return False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # As an upload would: no run that has begun takes it away again.
        os.utime(aside)
        _link_back(aside, path)
    except FileNotFoundError:
        # Another reader was faster, or it is in neither place.
        return path.exists()
    return True


def blob_path(folder: pathlib.Path, digest: str) -> pathlib.Path:
    """Return where a blob lies in a folder of blobs."""
    return folder / digests.check(digest)[3:5] / digest


def is_whole(path: pathlib.Path) -> bool:
    """Whether a blob's bytes are what its file name says. Reads it in constant memory."""
    hasher = blake3.blake3()
    for piece in disk_files.read_pieces(path):
        hasher.update(piece)
    return digests.name(hasher) == path.name.partition(".")[0]


def files_below(folder: pathlib.Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files in a folder and in its folders, one level down; none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from files_below(pathlib.Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield entry
    except FileNotFoundError:
        return


def sync_folder(folder: pathlib.Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link_back(aside: pathlib.Path, path: pathlib.Path) -> None:
    """Put a file into its place, unless a good one has come there, and only then take it away."""
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(aside)
    sync_folder(path.parent)
    aside.unlink(missing_ok=True)
