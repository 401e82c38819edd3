"""What every `BlobStore` has to do: subclass `BlobStoreSuite` in a test module."""

# ruff: noqa: S101 - a test suite that is shipped

import concurrent.futures
import pathlib

import blake3
import pytest

from torpor import errors, limits
from torpor.storage import blobs

TENANT = "acme"
ABSENT = f"b3-{'0' * 64}"


class BlobStoreSuite:
    """The conformance suite. A subclass gives a `store` fixture and says how to damage a blob."""

    def damage(self, store: blobs.BlobStore, tenant: str, digest: str, data: bytes) -> None:
        """Put `data` where the blob's bytes were, behind the store's back."""
        raise NotImplementedError

    @pytest.mark.parametrize("data", [b"", b"x", b"\0" * 5_000, bytes(range(256)) * 9_000])
    def test_bytes_come_back(self, store: blobs.BlobStore, data: bytes) -> None:
        """What was put is read back, under the name of its hash."""
        with store.upload(TENANT) as upload:
            digest = upload.put(data)
        assert digest == f"b3-{blake3.blake3(data).hexdigest()}"
        assert store.get(TENANT, digest, bytes_max=len(data)) == data
        assert b"".join(store.chunks(TENANT, digest)) == data
        assert store.exists(TENANT, digest)

    @pytest.mark.parametrize("extra", [-1, 0, 1, limits.FILE_CHUNK_BYTES])
    def test_files_come_back_in_pieces(
        self, store: blobs.BlobStore, tmp_path: pathlib.Path, extra: int
    ) -> None:
        """A file around the size of a piece or two is named by its bytes; pieces stay small."""
        data = b"0123456789abcdef" * (limits.FILE_CHUNK_BYTES // 16 + limits.FILE_CHUNK_BYTES // 8)
        data = data[: limits.FILE_CHUNK_BYTES + extra]
        (tmp_path / "file").write_bytes(data)
        with store.upload(TENANT) as upload:
            stored = upload.put_file(tmp_path / "file")
            assert upload.put(data) == stored[0]
        assert stored == (f"b3-{blake3.blake3(data).hexdigest()}", len(data))
        pieces = list(store.chunks(TENANT, stored[0]))
        assert b"".join(pieces) == data
        assert all(len(piece) <= limits.FILE_CHUNK_BYTES for piece in pieces)

    def test_links_are_not_followed(self, store: blobs.BlobStore, tmp_path: pathlib.Path) -> None:
        """A link is no file, whatever it points to."""
        (tmp_path / "file").write_bytes(b"secret")
        (tmp_path / "link").symlink_to(tmp_path / "file")
        with pytest.raises(OSError, match="link"), store.upload(TENANT) as upload:
            upload.put_file(tmp_path / "link")

    def test_what_is_missing_says_so(self, store: blobs.BlobStore) -> None:
        """A blob that is not there is missing, not empty."""
        assert not store.exists(TENANT, ABSENT)
        with pytest.raises(errors.BlobMissing) as raised:
            store.get(TENANT, ABSENT, bytes_max=1)
        assert raised.value.ids["digest"] == ABSENT
        with pytest.raises(errors.BlobMissing):
            list(store.chunks(TENANT, ABSENT))

    def test_larger_than_expected_is_corrupt(self, store: blobs.BlobStore) -> None:
        """A reader with room for fewer bytes is not handed more."""
        with store.upload(TENANT) as upload:
            digest = upload.put(b"four")
        with pytest.raises(errors.BlobCorrupt):
            store.get(TENANT, digest, bytes_max=3)

    @pytest.mark.parametrize("damaged", [b"", b"whole blo", b"whole blOb", b"whole blob and more"])
    def test_damage_is_noticed(self, store: blobs.BlobStore, damaged: bytes) -> None:
        """Torn, flipped and grown blobs are corrupt, read whole or in pieces."""
        with store.upload(TENANT) as upload:
            digest = upload.put(b"whole blob")
        self.damage(store, TENANT, digest, damaged)
        with pytest.raises(errors.BlobCorrupt):
            store.get(TENANT, digest, bytes_max=1_000)
        with pytest.raises(errors.BlobCorrupt):
            list(store.chunks(TENANT, digest))

    def test_a_torn_blob_is_mended_by_the_next_upload(self, store: blobs.BlobStore) -> None:
        """A blob of the wrong size does not stand in the way of the right one."""
        with store.upload(TENANT) as upload:
            digest = upload.put(b"whole blob")
        self.damage(store, TENANT, digest, b"who")
        with store.upload(TENANT) as upload:
            upload.put(b"whole blob")
        assert store.get(TENANT, digest, bytes_max=10) == b"whole blob"

    @pytest.mark.parametrize("whole", [True, False], ids=["get", "chunks"])
    def test_a_flipped_blob_is_mended_once_it_was_read(
        self, store: blobs.BlobStore, *, whole: bool
    ) -> None:
        """Who found a blob damaged, and has the right bytes, puts them in its place."""
        with store.upload(TENANT) as upload:
            digest = upload.put(b"whole blob")
        self.damage(store, TENANT, digest, b"whole blOb")
        with pytest.raises(errors.BlobCorrupt):
            store.get(TENANT, digest, bytes_max=10) if whole else list(store.chunks(TENANT, digest))
        for _ in range(2):
            with store.upload(TENANT) as upload:
                upload.put(b"whole blob")
            assert store.get(TENANT, digest, bytes_max=10) == b"whole blob"

    def test_marker_is_written_once(self, store: blobs.BlobStore) -> None:
        """A new storage has none; one that is marked keeps its id."""
        assert store.marker() == ""
        first = store.mark()
        assert first
        assert store.mark() == store.marker() == first
        assert store.marker_path

    def test_an_upload_that_failed_can_be_repeated(
        self, store: blobs.BlobStore, tmp_path: pathlib.Path
    ) -> None:
        """After an error nothing is promised, and nothing is in the way."""

        def put_and_fail() -> None:
            with store.upload(TENANT) as upload:
                upload.put(b"data")
                upload.put_file(tmp_path / "absent")

        with pytest.raises(FileNotFoundError):
            put_and_fail()
        with store.upload(TENANT) as upload:
            digest = upload.put(b"data")
        assert store.get(TENANT, digest, bytes_max=4) == b"data"

    def test_tenants_share_nothing(self, store: blobs.BlobStore) -> None:
        """The same digest of another tenant is another blob."""
        with store.upload(TENANT) as upload:
            digest = upload.put(b"data")
        assert not store.exists("other", digest)
        with pytest.raises(errors.BlobMissing):
            store.get("other", digest, bytes_max=4)

    @pytest.mark.parametrize(
        "digest", ["", "b3-", "../../etc/passwd", f"b3-{'/' * 64}", "b3-" + "A" * 64]
    )
    def test_only_digests_name_blobs(self, store: blobs.BlobStore, digest: str) -> None:
        """A name that is no digest is refused before it becomes a path."""
        with pytest.raises(errors.BlobCorrupt):
            store.get(TENANT, digest, bytes_max=1)
        with pytest.raises(errors.BlobCorrupt):
            list(store.chunks(TENANT, digest))

    def test_only_names_name_tenants(self, store: blobs.BlobStore) -> None:
        """A tenant cannot be a path."""
        with pytest.raises(errors.InvalidField):
            store.get("../other", ABSENT, bytes_max=1)
        with pytest.raises(errors.InvalidField):
            store.upload("a/b")

    def test_many_may_write_the_same_blob(self, store: blobs.BlobStore) -> None:
        """Uploads of the same bytes at the same time all succeed, and the blob is whole."""

        def put(_: int) -> str:
            with store.upload(TENANT) as upload:
                upload.put(b"same")
                return upload.put(b"same too")

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            (digest,) = set(pool.map(put, range(24)))
        assert store.get(TENANT, digest, bytes_max=8) == b"same too"
