"""How blobs are named: by the BLAKE3 hash of their bytes."""

import re

import blake3

from torpor import errors

#: Names the algorithm.
_PREFIX = "b3-"
_DIGEST = re.compile(rf"{_PREFIX}[0-9a-f]{{64}}")


def of(data: bytes) -> str:
    """Return the digest of `data`."""
    return name(blake3.blake3(data))


def name(hasher: blake3.blake3) -> str:
    """Return the digest of what `hasher` has seen."""
    return f"{_PREFIX}{hasher.hexdigest()}"


def is_one(text: str) -> bool:
    """Whether `text` has the shape of a digest."""
    return _DIGEST.fullmatch(text) is not None


def to_bytes(digest: str) -> bytes:
    """Return the 32 bytes that a digest writes in hex."""
    return bytes.fromhex(check(digest)[len(_PREFIX) :])


def from_bytes(raw: bytes) -> str:
    """Return the digest of 32 raw bytes."""
    return f"{_PREFIX}{raw.hex()}"


def check(digest: str) -> str:
    """Return `digest` if it has the shape of one; digests are made into paths, so this comes first.

    Raises:
        BlobCorrupt: it has not.
    """
    if not is_one(digest):
        raise errors.BlobCorrupt(f"{digest[:80]!r} is not a digest", digest=digest[:80])
    return digest
