"""Names and random ids: their shape, and where their randomness comes from."""

import base64
import os
import re

from torpor import errors

#: Tenants, agents and sessions are named in keys, folders and URLs, so the alphabet is the common
#: one.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
#: Request ids come from clients; long enough for a UUID or a trace id, short enough to keep by the
#: thousand.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def check_name(kind: str, value: str) -> str:
    """Return `value` if it may name a tenant, agent, session or node.

    Raises:
        InvalidField: it is empty, longer than 63 characters, or has characters other than a-z 0-9
            . _ -
    """
    if not _NAME.fullmatch(value) or ".." in value:
        raise errors.InvalidField(
            f"{kind} {value[:80]!r} is not a valid name: 1 to 63 of a-z 0-9 . _ -, "
            "beginning with a letter or digit, without '..'",
            field=kind,
        )
    return value


def check_request_id(value: str) -> str:
    """Return `value` if it may be a request id.

    Raises:
        InvalidField: it is empty, longer than 64 characters, or has characters outside A-Z a-z 0-9
            . _ : -
    """
    if not _REQUEST_ID.fullmatch(value):
        raise errors.InvalidField(
            f"request_id {value[:80]!r} is not valid: 1 to 64 of A-Z a-z 0-9 . _ : -",
            field="request_id",
        )
    return value


def random_id(prefix: str) -> str:
    """Return `prefix-` and 80 bits from the kernel, so that it is unique also across forks."""
    return f"{prefix}-{base64.b32encode(os.urandom(10)).decode().lower()}"


def nonce() -> str:
    """Return 128 bits from the kernel in hex: what tells two activations of one epoch apart."""
    return os.urandom(16).hex()


def api_key() -> str:
    """Return a fresh API key: 160 bits from the kernel, recognisable by its prefix."""
    return f"tp_{base64.b32encode(os.urandom(20)).decode().lower()}"
