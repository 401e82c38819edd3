"""Every blob store passes the same suite."""

import pathlib

import pytest

from torpor.storage import blobs, local_blobs
from torpor.testing.blobs import BlobStoreSuite


class TestLocalBlobs(BlobStoreSuite):
    """Blobs in a folder."""

    @pytest.fixture
    def store(self, tmp_path: pathlib.Path) -> blobs.BlobStore:
        """Return a store in a folder that does not exist yet."""
        self.root = tmp_path / "storage"
        return local_blobs.LocalBlobStore(self.root)

    def damage(self, store: blobs.BlobStore, tenant: str, digest: str, data: bytes) -> None:
        """Write over the file."""
        (self.root / tenant / "blobs" / digest[3:5] / digest).write_bytes(data)
