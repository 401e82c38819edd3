"""The key file, and what a tenant gets of it."""

import pathlib
import pickle

import pytest

from torpor import errors
from torpor.storage import keyring


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    """A place for a key file."""
    return tmp_path / "keys"


def write(path: pathlib.Path, text: str) -> None:
    """Write a key file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_text(text)


def test_a_created_file_is_private_and_loads(path: pathlib.Path) -> None:
    """`create` leaves a file of mode 0600 that `load` accepts, with another key each time."""
    keyring.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    first = keyring.load(path).for_tenant("acme")
    path.unlink()
    keyring.create(path)
    assert keyring.load(path).for_tenant("acme").keys != first.keys


def test_a_file_is_never_overwritten(path: pathlib.Path) -> None:
    """Keys that are there stay: without them no checkpoint opens."""
    keyring.create(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        keyring.create(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_of_others_is_refused(path: pathlib.Path, mode: int) -> None:
    """Any right of group or others is a refusal that says how to put it right."""
    keyring.create(path)
    path.chmod(mode)
    with pytest.raises(errors.SigningKeyMissing, match="chmod 600"):
        keyring.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n\n",
        "k1:abcd\n",
        f"K 1:{'0' * 64}\n",
        f"{'k' * 33}:{'0' * 64}\n",
        f"k1:{'0' * 64}\nk1:{'1' * 64}\n",
        "".join(f"k{i}:{i:064x}\n" for i in range(keyring.KEYS_MAX + 1)),
        f"# {'x' * 10_000}\nk1:{'0' * 64}\n",
    ],
)
def test_a_malformed_file_is_refused(path: pathlib.Path, text: str) -> None:
    """Empty, cut, badly named, doubled or endless files are no keyring."""
    write(path, text)
    with pytest.raises(errors.SigningKeyMissing, match=str(path)):
        keyring.load(path)


def test_a_malformed_line_is_not_shown(path: pathlib.Path) -> None:
    """A key with one digit too few does not end up in a log."""
    write(path, f"k1:{'5' * 63}\n")
    with pytest.raises(errors.SigningKeyMissing) as caught:
        keyring.load(path)
    assert "555" not in str(caught.value)


def test_a_missing_file_names_the_remedy(path: pathlib.Path) -> None:
    """Without a file the message says how to make one."""
    with pytest.raises(errors.SigningKeyMissing, match="openssl rand -hex 32"):
        keyring.load(path)


def test_the_newest_signs_and_all_verify(path: pathlib.Path) -> None:
    """The first line is the newest; the older ones stay for what they signed."""
    write(path, f"# two\nk2:{'2' * 64}\nk1:{'1' * 64}\n")
    keys = keyring.load(path).for_tenant("acme")
    assert keys.signing_id == "k2"
    assert list(keys.keys) == ["k2", "k1"]


def test_tenants_get_different_keys() -> None:
    """A derived key is neither the master nor another tenant's, and always the same."""
    ring = keyring.Keyring({"k1": b"m" * 32})
    acme, other = ring.for_tenant("acme").keys["k1"], ring.for_tenant("other").keys["k1"]
    assert len({acme, other, b"m" * 32}) == 3
    assert ring.for_tenant("acme").keys["k1"] == acme


def test_derivation_is_hkdf() -> None:
    """The first test vector of RFC 5869 with its own salt, cut to one block."""
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    assert keyring.hkdf(b"\x0b" * 22, salt, info).hex() == expected


def test_no_repr_shows_a_key() -> None:
    """Keys stay out of logs and tracebacks."""
    ring = keyring.Keyring({"k1": b"mmmm" * 8})
    keys = ring.for_tenant("acme")
    shown = f"{ring!r} {keys!r} {keys} {keys.__rich_repr__()}"
    assert "mmmm" not in shown
    assert repr(keys.keys["k1"])[2:10] not in shown


def test_tenant_keys_travel() -> None:
    """They reach a session's process through pickle."""
    keys = keyring.Keyring({"k1": b"m" * 32}).for_tenant("acme")
    assert pickle.loads(pickle.dumps(keys)) == keys  # noqa: S301
