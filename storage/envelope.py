"""The signed envelope around a session's state: nothing in it is decoded before it is verified.

    magic 8 · format 2 · key id 32 · header length 4 · payload length 8
                fixed in size, and all that is read before verifying
    header      msgpack of `Header`
    payload     what `codec` says
    signature   HMAC-SHA256 over everything before it, with the tenant's key of that id

A signature says that we wrote these bytes, not that they are the newest: therefore an envelope is
also compared with the reference in the head, which makes an old but valid one useless.
"""

import hashlib
import hmac
import platform
import struct

import cloudpickle  # type: ignore[import-untyped]
import msgspec

from torpor import errors, limits
from torpor.storage import digests, keyring, records

MAGIC = b"torporck"
FORMAT = 1
CODEC = "cloudpickle"
PYTHON = ".".join(platform.python_version_tuple()[:2])

#: Names and numbers, all of them short: see `torpor.ids`.
HEADER_BYTES_MAX = 4_096
SIGNATURE_BYTES = 32
_PREFIX = struct.Struct(f">8sH{keyring.KEY_ID_BYTES_MAX}sIQ")
#: The largest envelope of the largest state.
ENVELOPE_BYTES_MAX = _PREFIX.size + HEADER_BYTES_MAX + limits.STATE_BYTES_MAX + SIGNATURE_BYTES


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an envelope says of its payload."""

    tenant: str
    #: The session that wrote it; a fork's head refers to its origin's.
    origin: str
    epoch: int
    version: int
    agent: str
    agent_version: int
    codec: str = CODEC
    #: `major.minor`: the code of functions does not move between minors.
    python: str = PYTHON
    #: The cloudpickle that wrote it, for people.
    cloudpickle: str = cloudpickle.__version__


def seal(header: Header, payload: bytes, keys: keyring.TenantKeys) -> bytes:
    """Return the signed envelope of `payload`.

    Raises:
        ValueError: the header names another tenant than the keys: a bug of the caller.
    """
    if header.tenant != keys.tenant:
        raise ValueError(f"keys of tenant {keys.tenant} cannot sign for {header.tenant}")
    encoded = msgspec.msgpack.encode(header)
    key_id = keys.signing_id.encode()
    prefix = _PREFIX.pack(MAGIC, FORMAT, key_id, len(encoded), len(payload))
    signature = hmac.new(keys.keys[keys.signing_id], prefix, hashlib.sha256)
    signature.update(encoded)
    signature.update(payload)
    return b"".join((prefix, encoded, payload, signature.digest()))


def reference(header: Header, envelope: bytes, *, inline: bool) -> records.CheckpointRef:
    """Return what the head says of this envelope."""
    return records.CheckpointRef(
        version=header.version,
        epoch=header.epoch,
        origin=header.origin,
        state=digests.of(envelope),
        state_bytes=len(envelope),
        inline=inline,
    )


def open(  # noqa: A001 — the pair of `seal`; nothing here opens files
    envelope: bytes, expected: records.CheckpointRef, keys: keyring.TenantKeys
) -> tuple[Header, memoryview]:
    """Verify an envelope, then return its header and payload (a view, not a copy).

    Raises:
        CheckpointCorrupt: it is torn, altered, signed with another key, of an unknown format, or
            not the one that the head names. The payload was not decoded.
        CheckpointIncompatible: another Python minor wrote it.
    """
    view = memoryview(envelope)
    body, signature, header_bytes, key_id = _split(view)
    _verify(body, signature, key_id, keys)
    header = _decode(bytes(body[_PREFIX.size : _PREFIX.size + header_bytes]))
    _compare(header, envelope, expected, keys.tenant)
    if header.python != PYTHON:
        raise errors.CheckpointIncompatible(
            f"the checkpoint was written by Python {header.python}, this process is Python "
            f"{PYTHON}: run the agent on Python {header.python}",
            session=header.origin,
            version=header.version,
        )
    return header, body[_PREFIX.size + header_bytes :]


def _split(view: memoryview) -> tuple[memoryview, memoryview, int, str]:
    if len(view) < _PREFIX.size + SIGNATURE_BYTES:
        raise errors.CheckpointCorrupt(
            f"the checkpoint is torn: {len(view)} bytes are less than its fixed parts"
        )
    magic, version, key_id, header_bytes, payload_bytes = _PREFIX.unpack_from(view)
    if magic != MAGIC or version != FORMAT:
        raise errors.CheckpointCorrupt(
            f"the checkpoint has an unknown format: {magic!r} {version}, "
            f"this torpor reads {MAGIC!r} {FORMAT}"
        )
    if header_bytes > HEADER_BYTES_MAX or payload_bytes > limits.STATE_BYTES_MAX:
        raise errors.CheckpointCorrupt(
            f"the checkpoint states impossible lengths: {header_bytes} and {payload_bytes} bytes"
        )
    size = _PREFIX.size + header_bytes + payload_bytes + SIGNATURE_BYTES
    if len(view) != size:
        raise errors.CheckpointCorrupt(
            f"the checkpoint is torn: it has {len(view)} bytes and states {size}"
        )
    name = key_id.rstrip(b"\0").decode("ascii", errors="replace")
    return view[:-SIGNATURE_BYTES], view[-SIGNATURE_BYTES:], header_bytes, name


def _verify(body: memoryview, signature: memoryview, key_id: str, keys: keyring.TenantKeys) -> None:
    key = keys.keys.get(key_id)
    if key is None:
        raise errors.CheckpointCorrupt(
            f"the checkpoint is signed with the unknown key {key_id!r}; put that key back into the "
            "key file below the newest one",
            tenant=keys.tenant,
        )
    if not hmac.compare_digest(hmac.digest(key, body, hashlib.sha256), signature):
        raise errors.CheckpointCorrupt(
            f"the checkpoint's signature is wrong: it was altered, or another key than {key_id!r} "
            "of this tenant signed it",
            tenant=keys.tenant,
        )


def _decode(encoded: bytes) -> Header:
    try:
        header = msgspec.msgpack.decode(encoded, type=Header)
    except msgspec.MsgspecError as error:
        raise errors.CheckpointCorrupt(f"the checkpoint's header is not valid: {error}") from error
    if header.codec != CODEC:
        raise errors.CheckpointCorrupt(f"the checkpoint has the unknown codec {header.codec!r}")
    return header


def _compare(header: Header, envelope: bytes, expected: records.CheckpointRef, tenant: str) -> None:
    is_ = (header.tenant, header.origin, header.epoch, header.version)
    named = (tenant, expected.origin, expected.epoch, expected.version)
    if is_ == named and digests.of(envelope) == expected.state:
        return
    raise errors.CheckpointCorrupt(
        "this is not the checkpoint that the head names: it is {}/{} epoch {} version {}, ".format(
            *is_
        )
        + "the head names {}/{} epoch {} version {}".format(*named)
        + (", with other content" if is_ == named else ""),
        tenant=tenant,
        session=expected.origin,
    )
