"""Manifests: one encoding, strict decoding, pages that stay put."""

import pathlib
import zlib

import msgspec
import pytest

from torpor import errors
from torpor.storage import local_blobs, manifest, workspace_tree
from torpor.testing import workspaces

CONTENT = f"b3-{'5' * 64}"


def _file(name: bytes, size_bytes: int = 1) -> manifest.Entry:
    return manifest.Entry(
        name=name, kind=manifest.Kind.FILE, mode=0o644, size_bytes=size_bytes, digest=CONTENT
    )


def _files(count: int) -> tuple[manifest.Entry, ...]:
    return tuple(_file(b"file-%06d" % number) for number in range(count))


@pytest.fixture
def store(tmp_path: pathlib.Path) -> workspaces.RecordingBlobs:
    """Return a store that notes what is read and written."""
    return workspaces.RecordingBlobs(local_blobs.LocalBlobStore(tmp_path))


def _stored(store: workspaces.RecordingBlobs, entries: tuple[manifest.Entry, ...]) -> str:
    with store.upload("acme") as upload:
        return workspace_tree.paginate(entries, workspace_tree.EMPTY, upload.put)[1]


def test_the_encoding_is_fixed() -> None:
    """The bytes are a contract: digests of other versions and machines have to agree."""
    page = manifest.Page(entries=(_file(b"a"),))
    assert manifest.encode(page) == (
        b"\x92\x01\x91\x96\xc4\x01a\x01\xcd\x01\xa4\x01\xd9\x43" + CONTENT.encode() + b"\xc4\x00"
    )
    assert manifest.decode(manifest.encode(page)) == page


GOOD = _file(b"good")
LINK = manifest.Entry(name=b"l", kind=manifest.Kind.LINK, mode=0o777, size_bytes=0, target=b"x")
CHANGED = [
    {"name": b""},
    {"name": b"."},
    {"name": b".."},
    {"name": b"../up"},
    {"name": b"/root"},
    {"name": b"nul\0"},
    {"name": b"n" * 256},
    {"mode": 0o1777},
    {"mode": -1},
    {"size_bytes": -1},
    {"digest": ""},
    {"digest": "../../etc/passwd"},
    {"target": b"file with a target"},
    {"kind": manifest.Kind.LINK},
]


@pytest.mark.parametrize("change", CHANGED, ids=str)
def test_impossible_entries_are_corrupt(change: dict[str, object]) -> None:
    """Names that lead elsewhere, odd bits and fields that contradict each other are refused."""
    bad = msgspec.structs.replace(GOOD, **change)
    with pytest.raises(errors.BlobCorrupt):
        manifest.decode(manifest.encode(manifest.Page(entries=(bad,))))


@pytest.mark.parametrize(
    "change",
    [{"target": b""}, {"target": b"x" * 4096}, {"target": b"\0"}, {"size_bytes": 1}],
    ids=str,
)
def test_impossible_links_are_corrupt(change: dict[str, object]) -> None:
    """A link has a target that Linux allows, and nothing else."""
    bad = msgspec.structs.replace(LINK, **change)
    with pytest.raises(errors.BlobCorrupt):
        manifest.decode(manifest.encode(manifest.Page(entries=(bad,))))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"not msgpack at all",
        manifest.encode(manifest.Page(entries=())),
        manifest.encode(manifest.Page(entries=(GOOD, GOOD))),
        manifest.encode(manifest.Page(entries=(_file(b"b"), _file(b"a")))),
        manifest.encode(manifest.Index(pages=(manifest.PageRef(first=b"a", digest="x"),))),
        manifest.encode(manifest.Page(entries=(GOOD,))) + b"\0",
        manifest.encode(manifest.Page(entries=(GOOD,))).replace(
            b"\xcd\x01\xa4", b"\xce\0\0\x01\xa4"
        ),
        msgspec.msgpack.encode([1, [["text name", 1, 0o644, 1, CONTENT, b""]]]),
        msgspec.msgpack.encode([1, [[b"a", 9, 0o644, 1, CONTENT, b""]]]),
        msgspec.msgpack.encode([1, [[b"a", 1, 0o644, 1, CONTENT, b"", "more"]]]),
    ],
)
def test_what_encode_does_not_make_is_corrupt(data: bytes) -> None:
    """Other types, other orders, other lengths and other encodings of the same are refused."""
    with pytest.raises(errors.BlobCorrupt):
        manifest.decode(data)


@pytest.mark.parametrize("count", [0, 1, 64, 65, 1_024, 5_000])
def test_pages_are_whole_and_bounded(count: int) -> None:
    """Cutting loses nothing, and pages are neither tiny nor huge."""
    runs = list(manifest.cut(_files(count)))
    assert sum(runs, ()) == _files(count)
    assert all(len(run) >= manifest.PAGE_ENTRIES_MIN for run in runs[:-1])
    assert all(0 < len(run) <= manifest.PAGE_ENTRIES_MAX for run in runs)


def test_pages_are_bounded_whatever_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no name ends a page, its length does."""
    monkeypatch.setattr(zlib, "crc32", lambda name: 1)
    assert [len(run) for run in manifest.cut(_files(2_500))] == [1_024, 1_024, 452]


def test_one_more_name_moves_few_pages(store: workspaces.RecordingBlobs) -> None:
    """A name in the middle of a large folder changes the pages near it, not those after it."""
    before = _files(10_000)
    with store.upload("acme") as upload:
        pages, _ = workspace_tree.paginate(before, workspace_tree.EMPTY, upload.put)
    known = msgspec.structs.replace(workspace_tree.EMPTY, pages=pages)
    for number in range(0, 10_000, 500):
        store.forget()
        added = (*before, _file(b"file-%06d-and-a-half" % number))
        with store.upload("acme") as upload:
            workspace_tree.paginate(added, known, upload.put)
        assert len(store.puts) <= 5


def test_finding_reads_the_index_and_one_page(store: workspaces.RecordingBlobs) -> None:
    """A name in a large folder is found, or not, with two reads; in a small one with one."""
    entries = _files(3_000)
    large, small = _stored(store, entries), _stored(store, entries[:10])
    for entry in (entries[0], entries[1_234], entries[-1]):
        store.forget()
        assert manifest.find(store, "acme", large, entry.name) == entry
        assert len(store.reads) == 2
    for name in (b"a", b"file-000100x", b"z"):
        store.forget()
        assert manifest.find(store, "acme", large, name) is None
        assert len(store.reads) == 2
    store.forget()
    assert manifest.find(store, "acme", small, entries[3].name) == entries[3]
    assert len(store.reads) == 1
    assert manifest.find(store, "acme", "", b"a") is None


def test_pages_that_are_not_what_the_index_says_are_corrupt(
    store: workspaces.RecordingBlobs,
) -> None:
    """An index that lies about its pages, or names another index, is refused."""
    entries = _files(20)
    with store.upload("acme") as upload:
        page = upload.put(manifest.encode(manifest.Page(entries=entries)))
        wrong = [
            (manifest.PageRef(first=b"another", digest=page),),
            (
                manifest.PageRef(first=entries[0].name, digest=page),
                manifest.PageRef(
                    first=entries[9].name,
                    digest=upload.put(manifest.encode(manifest.Page(entries=entries[9:]))),
                ),
            ),
        ]
        digests = [upload.put(manifest.encode(manifest.Index(pages=pages))) for pages in wrong]
        refs = (manifest.PageRef(first=b"another", digest=digests[0]),)
        digests.append(upload.put(manifest.encode(manifest.Index(pages=refs))))
    for digest in digests:
        with pytest.raises(errors.BlobCorrupt):
            list(manifest.pages(store, "acme", digest))
