"""The keys that sign checkpoints: a file of master keys, and what a tenant gets of them."""

import hashlib
import hmac
import os
import pathlib
import re
import stat
from collections.abc import Mapping

import msgspec

from torpor import errors

#: Of a master key and of a derived key: the output of SHA-256.
KEY_BYTES = 32
#: The envelope's fixed prefix has room for this much.
KEY_ID_BYTES_MAX = 32
#: Old keys only have to outlive the checkpoints signed with them; a longer file is a mistake.
KEYS_MAX = 64
#: `KEYS_MAX` lines of the longest form, with room for line ends.
_FILE_BYTES_MAX = KEYS_MAX * (KEY_ID_BYTES_MAX + 2 * KEY_BYTES + 4)

_LINE = re.compile(rf"([a-z0-9][a-z0-9._-]{{0,{KEY_ID_BYTES_MAX - 1}}}):([0-9a-f]{{64}})")
_SALT = b"torpor keyring"
_CHECKPOINT_INFO = b"torpor checkpoint v1\0"


class TenantKeys(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's keys: all that a process of that tenant ever holds. Newest first."""

    tenant: str
    #: The id of the key that signs; all of them verify.
    signing_id: str
    #: key id → key.
    keys: Mapping[str, bytes]

    def __repr__(self) -> str:
        return f"TenantKeys(tenant={self.tenant!r}, ids={list(self.keys)!r})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("tenant", self.tenant), ("ids", list(self.keys))]


class Keyring:
    """The deployment's master keys; only what starts session processes holds it."""

    def __init__(self, masters: Mapping[str, bytes]) -> None:
        self._masters = dict(masters)

    def __repr__(self) -> str:
        return f"Keyring(ids={list(self._masters)!r})"

    def for_tenant(self, tenant: str) -> TenantKeys:
        """Return the tenant's keys; no master, and no other tenant's key, follows from them."""
        info = _CHECKPOINT_INFO + tenant.encode()
        keys = {key_id: hkdf(master, _SALT, info) for key_id, master in self._masters.items()}
        return TenantKeys(tenant=tenant, signing_id=next(iter(keys)), keys=keys)


def create(path: pathlib.Path, key_id: str = "k1") -> None:
    """Write a file with one fresh key, readable by its owner alone.

    Raises:
        FileExistsError: there is a file already; keys are never overwritten.
    """
    line = f"{key_id}:{os.urandom(KEY_BYTES).hex()}\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: pathlib.Path) -> Keyring:
    """Read the master keys: one `id:hex` a line, the newest first; `#` begins a comment line.

    Raises:
        SigningKeyMissing: there is no such file, others may read it, or it holds no proper keys.
    """
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            text = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise errors.SigningKeyMissing(
            f"cannot read the signing keys in {path} ({error.strerror}): name the right file, "
            "or make one of mode 0600 with a line `k1:` and the output of `openssl rand -hex 32`"
        ) from error
    return Keyring(_parse(path, text))


def _check_private(path: pathlib.Path, status: os.stat_result) -> None:
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid != os.geteuid():
        raise errors.SigningKeyMissing(
            f"the signing keys in {path} (mode {stat.S_IMODE(status.st_mode):04o}, owner "
            f"{status.st_uid}) are not this user's alone: take the file and `chmod 600` it; if "
            "others could read it, put a fresh key on its first line"
        )


def _parse(path: pathlib.Path, text: bytes) -> dict[str, bytes]:
    lines = text.decode(errors="replace").splitlines()
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        # The line itself may be most of a key, so the message does not show it.
        if match is None or match[1] in keys:
            raise errors.SigningKeyMissing(
                f"line {number} of {path} is not a key: write `id:` and 64 hex digits, each id once"
            )
        keys[match[1]] = bytes.fromhex(match[2])
    if not keys or len(keys) > KEYS_MAX or len(text) > _FILE_BYTES_MAX:
        raise errors.SigningKeyMissing(
            f"{path} holds {len(keys)} keys in {len(text)} bytes; it must hold 1 to {KEYS_MAX}"
        )
    return keys


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256 (RFC 5869): one block, so expanding is one HMAC."""
    extracted = hmac.digest(salt, secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)
