"""How blobs are named: by the BLAKE3 hash of their bytes."""

import re

import blake3

from torpor import errors

_DIGEST = re.compile(r"b3-[0-9a-f]{64}")


def of(data: bytes) -> str:
    """Return the digest of `data`."""
    return name(blake3.blake3(data))


def name(hasher: blake3.blake3) -> str:
    """Return the digest of what `hasher` has seen."""
    return f"b3-{hasher.hexdigest()}"


def check(digest: str) -> str:
    """Return `digest` if it has the shape of one; digests are made into paths, so this comes first.

    Raises:
        BlobCorrupt: it has not.
    """
    if not _DIGEST.fullmatch(digest):
        raise errors.BlobCorrupt(f"{digest[:80]!r} is not a digest", digest=digest[:80])
    return digest
