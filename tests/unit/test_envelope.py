"""Envelopes: what is altered, torn, of another key or not the newest is never decoded."""

import pickle
import struct
from collections.abc import Callable

import msgspec
import pytest

from torpor import errors, limits
from torpor.storage import digests, envelope, keyring, records

RING = keyring.Keyring({"k2": b"2" * 32, "k1": b"1" * 32})
KEYS = RING.for_tenant("acme")
HEADER = envelope.Header(
    tenant="acme", origin="s1", epoch=3, version=7, agent="notebook", agent_version=2
)
unpickled: list[bool] = []


def spring_trap() -> None:
    """Note that somebody unpickled the payload."""
    unpickled.append(True)


class Trap:
    """Unpickling one is noticed."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return spring_trap, ()


TRAP = pickle.dumps(Trap()) + b"\0" * 300


def sealed(
    payload: bytes = TRAP, header: envelope.Header = HEADER, keys: keyring.TenantKeys = KEYS
) -> tuple[bytes, records.CheckpointRef]:
    """Return an envelope and its reference."""
    data = envelope.seal(header, payload, keys)
    return data, envelope.reference(header, data, inline=True)


def restore(data: bytes, expected: records.CheckpointRef) -> None:
    """Open and unpickle, as a wake does."""
    _, payload = envelope.open(data, expected, KEYS)
    pickle.loads(payload)  # noqa: S301


def test_what_was_sealed_opens() -> None:
    """Header and payload come back, and the trap of the other tests works."""
    data, ref = sealed()
    header, payload = envelope.open(data, ref, KEYS)
    assert header == HEADER
    assert payload == TRAP
    unpickled.clear()
    restore(data, ref)
    assert unpickled == [True]


def test_an_empty_payload_opens() -> None:
    """Nothing is a payload too."""
    data, ref = sealed(b"")
    assert envelope.open(data, ref, KEYS)[1] == b""


@pytest.mark.parametrize("honest_digest", [True, False])
def test_damage_anywhere_never_reaches_the_unpickler(honest_digest: bool) -> None:
    """Cut or flipped at any 64-byte boundary, also if the head named the damaged bytes."""
    data, ref = sealed()
    damaged = [data[:at] for at in range(0, len(data), 64)]
    damaged += [data[:-1], data + b"\0", b""]
    for at in (*range(0, len(data), 64), len(data) - 1):
        damaged.append(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    unpickled.clear()
    for bad in damaged:
        expected = ref
        if not honest_digest:
            expected = msgspec.structs.replace(ref, state=digests.of(bad))
        with pytest.raises(errors.CheckpointCorrupt):
            restore(bad, expected)
    assert unpickled == []


def test_every_byte_of_the_fixed_parts_is_signed() -> None:
    """No byte before the payload can be changed, whatever it means."""
    data, ref = sealed(b"x")
    for at in range(len(data)):
        for bit in (1, 128):
            bad = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            with pytest.raises(errors.CheckpointCorrupt):
                envelope.open(bad, ref, KEYS)


def test_a_torn_envelope_says_so() -> None:
    """The message tells a cut from an alteration."""
    data, ref = sealed()
    with pytest.raises(errors.CheckpointCorrupt, match=f"torn: it has {len(data) - 9} bytes"):
        envelope.open(data[:-9], ref, KEYS)


def test_impossible_lengths_are_refused_before_anything_is_read() -> None:
    """Lengths are bounded before they are believed."""
    for header_bytes, payload_bytes in ((envelope.HEADER_BYTES_MAX + 1, 1), (1, 1 << 62)):
        data = struct.pack(">8sH32sIQ", envelope.MAGIC, 1, b"k2", header_bytes, payload_bytes)
        with pytest.raises(errors.CheckpointCorrupt, match="impossible"):
            envelope.open(data + b"\0" * 64, sealed()[1], KEYS)


def test_an_unknown_format_is_named() -> None:
    """A later format is not guessed at."""
    data, ref = sealed()
    with pytest.raises(errors.CheckpointCorrupt, match="unknown format"):
        envelope.open(data[:8] + b"\0\x02" + data[10:], ref, KEYS)


def test_older_keys_still_verify() -> None:
    """After a rotation what the old key signed opens; once it is dropped, the message names it."""
    old = keyring.Keyring({"k1": b"1" * 32}).for_tenant("acme")
    data, ref = sealed(keys=old)
    assert envelope.open(data, ref, KEYS)[1] == TRAP
    only_new = keyring.Keyring({"k2": b"2" * 32}).for_tenant("acme")
    with pytest.raises(errors.CheckpointCorrupt, match="unknown key 'k1'"):
        envelope.open(data, ref, only_new)


def test_another_key_of_the_same_id_is_refused() -> None:
    """The id of a key proves nothing."""
    other = keyring.Keyring({"k2": b"x" * 32}).for_tenant("acme")
    data, ref = sealed(keys=other)
    with pytest.raises(errors.CheckpointCorrupt, match="signature is wrong"):
        envelope.open(data, ref, KEYS)


def test_another_tenants_envelope_is_refused() -> None:
    """The same master key signs differently for each tenant."""
    header = msgspec.structs.replace(HEADER, tenant="other")
    data, ref = sealed(header=header, keys=RING.for_tenant("other"))
    with pytest.raises(errors.CheckpointCorrupt, match="signature is wrong"):
        envelope.open(data, ref, KEYS)
    with pytest.raises(ValueError, match="cannot sign"):
        envelope.seal(header, b"", KEYS)


@pytest.mark.parametrize(
    "change", [{"origin": "s2"}, {"epoch": 2}, {"version": 6}, {"state": f"b3-{'0' * 64}"}]
)
def test_an_old_but_valid_envelope_is_refused(change: dict[str, object]) -> None:
    """A signed envelope of another session, epoch, version or content is not the head's."""
    data, ref = sealed()
    unpickled.clear()
    with pytest.raises(errors.CheckpointCorrupt, match="not the checkpoint that the head names"):
        restore(data, msgspec.structs.replace(ref, **change))
    assert unpickled == []


def test_another_python_minor_is_refused_after_verification() -> None:
    """Functions do not move between minors; the message names both."""
    data, ref = sealed(header=msgspec.structs.replace(HEADER, python="3.99"))
    with pytest.raises(errors.CheckpointIncompatible, match=r"run the agent on Python 3\.99"):
        envelope.open(data, ref, KEYS)


def test_an_unknown_codec_is_refused() -> None:
    """A payload of another codec is not unpickled."""
    data, ref = sealed(header=msgspec.structs.replace(HEADER, codec="json"))
    with pytest.raises(errors.CheckpointCorrupt, match="unknown codec 'json'"):
        envelope.open(data, ref, KEYS)


def test_the_longest_names_fit() -> None:
    """Names of the greatest length stay below the header's bound."""
    long = envelope.Header(
        tenant="t" * 63,
        origin="s" * 63,
        epoch=2**63,
        version=2**63,
        agent="a" * 63,
        agent_version=2**63,
    )
    keys = RING.for_tenant("t" * 63)
    data, ref = sealed(header=long, keys=keys)
    assert envelope.open(data, ref, keys)[0] == long
    assert len(msgspec.msgpack.encode(long)) < envelope.HEADER_BYTES_MAX
    assert envelope.ENVELOPE_BYTES_MAX > limits.STATE_BYTES_MAX
