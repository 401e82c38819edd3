"""What is written beside a workspace that a session has left, so that it can be used once more.

A file of three lines: the digest of what follows it, a short head that is read alone, and the tree
with the stamps of every file. It holds no code, and counts for nothing unless it is whole. A stamp
proves a file only while the kernel that gave it runs: after a power cut a file may have its times
and not its content. So a description is void after a boot.
"""

import functools
import operator
import pathlib
import sys

import msgspec

from torpor.storage import digests, manifest, records, workspace_tree

#: In the folder that holds the workspace.
NAME = "workspace.tree"
#: More files are not described: that would take a process that leaves more than 100 MB.
ENTRIES_MAX = 200_000
#: The first two lines are far below it.
HEAD_BYTES_MAX = 4_096
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has to know of a workspace to keep it."""

    key: records.SessionKey
    #: The kernel's, since it was started.
    boot_id: str
    #: Files, links and folders.
    entries: int
    #: What it takes on the disk, about: a block for each name, and the files' sizes.
    disk_bytes: int
    #: When the session left, by the node's clock.
    at_ms: int
    #: When the process began that left it, in the kernel's ticks since the boot.
    since_ticks: int


class _Folder(msgspec.Struct, frozen=True, array_like=True, gc=False):
    digest: str
    pages: tuple[tuple[str, tuple[manifest.Entry, ...]], ...]
    #: One for each entry, in the order of the pages.
    stamps: tuple[workspace_tree.Stamp | None, ...]
    #: One for each entry that is a folder, in the same order.
    folders: tuple["_Folder", ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Folder).decode
_encode_head = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(Head).decode
_decoded = operator.methodcaller(
    "decode", sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
)
_size_bytes = operator.attrgetter("size_bytes")
#: Of one name on the disk, whatever it is.
_BLOCK_BYTES = 4_096


@functools.cache
def boot_id() -> str:
    """Return what tells this run of the kernel from others."""
    return _BOOT_ID.read_text().strip()


def write(
    folder: pathlib.Path,
    key: records.SessionKey,
    tree: workspace_tree.Folder,
    *,
    at_ms: int,
    since_ticks: int,
) -> bool:
    """Describe the workspace in `folder`, whole or not at all; False if there are too many files.

    Raises:
        OSError: the disk refuses.
    """
    entries = workspace_tree.names_below(tree)
    if entries > ENTRIES_MAX:
        return False
    head = Head(
        key=key,
        boot_id=boot_id(),
        entries=entries,
        disk_bytes=tree.size_bytes + entries * _BLOCK_BYTES,
        at_ms=at_ms,
        since_ticks=since_ticks,
    )
    content = _encode_head(head) + b"\n" + _encode(_packed(tree))
    partial = folder / f"{NAME}.partial"
    partial.write_bytes(digests.of(content).encode() + b"\n" + content)
    partial.rename(folder / NAME)
    return True


def head(folder: pathlib.Path) -> Head | None:
    """Return the head of the description in `folder`; None if none can be read, or it is void."""
    try:
        with (folder / NAME).open("rb") as file:
            found = _decode_head(file.read(HEAD_BYTES_MAX).split(b"\n", 2)[1])
    except (OSError, IndexError, msgspec.MsgspecError):
        return None
    return found if found.boot_id == boot_id() else None


def read(folder: pathlib.Path, key: records.SessionKey) -> workspace_tree.Folder | None:
    """Return the tree that was left in `folder`; None unless it is whole and this session's."""
    try:
        named, _, content = (folder / NAME).read_bytes().partition(b"\n")
        if digests.of(content).encode() != named:
            return None
        line, _, packed = content.partition(b"\n")
        found = _decode_head(line)
        if (found.key, found.boot_id) != (key, boot_id()):
            return None
        return _unpacked(_decode(packed))
    except (OSError, msgspec.MsgspecError):
        return None


def _packed(tree: workspace_tree.Folder) -> _Folder:
    names = _names(tree.pages)
    return _Folder(
        tree.digest,
        tuple((page.digest, page.entries) for page in tree.pages),
        tuple(tree.stamps.get(name) for name in names),
        tuple(_packed(tree.folders[name]) for name in names if name in tree.folders),
    )


def _unpacked(packed: _Folder) -> workspace_tree.Folder:
    pages = tuple(
        workspace_tree.StoredPage(
            entries=entries, digest=digest, size_bytes=sum(map(_size_bytes, entries))
        )
        for digest, entries in packed.pages
    )
    entries = [entry for page in pages for entry in page.entries]
    names = _names(pages)
    below: list[str] = []
    if packed.folders:
        pairs = zip(names, entries, strict=True)
        below = [name for name, entry in pairs if entry.kind is manifest.Kind.FOLDER]
    return workspace_tree.Folder(
        stamps=dict(zip(names, packed.stamps, strict=True)),
        entries=dict(zip(names, entries, strict=True)),
        folders=dict(zip(below, map(_unpacked, packed.folders), strict=True)),
        pages=pages,
        digest=packed.digest,
        size_bytes=sum(page.size_bytes for page in pages),
    )


def _names(pages: tuple[workspace_tree.StoredPage, ...]) -> list[str]:
    # As `os.fsdecode`, several times as fast: there may be tens of thousands, and somebody waits.
    return [_decoded(entry.name) for page in pages for entry in page.entries]
