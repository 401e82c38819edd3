"""Records go into Redis small and come back as they were; scripts find what they compare."""

from torpor.storage import keys, record_codec, records
from torpor.testing import store_samples


def test_digest_takes_half_its_length() -> None:
    """A blob's digest is stored in 33 bytes, any other text as it is."""
    digest = "b3-" + "0123456789abcdef" * 4
    assert len(record_codec.digest(digest)) == 33
    for text in (digest, "", "other", "b3-short"):
        assert record_codec.digest_of(record_codec.digest(text)) == text


def test_fields_of_the_head_stay_small() -> None:
    """With the longest names no field that stays while a session sleeps is above 64 bytes."""
    name = "n" * 63
    new = records.NewSession(
        key=records.SessionKey(name, name),
        agent=name,
        agent_version=10**6,
        request_id="r" * 64,
        created_ms=store_samples.AT_MS,
    )
    ref = records.CheckpointRef(
        version=2**53,
        epoch=2**53,
        origin=name,
        state="b3-" + "f" * 64,
        state_bytes=2**40,
        inline=True,
    )
    usage = records.Usage(turns=2**40, cpu_ms=2**53, busy_ms=2**53, rss_bytes=2**40)
    commit = store_samples.commit(
        store_samples.head(), checkpoint=ref, manifest=ref.state, usage=usage
    )
    written = record_codec.new_head(new) + record_codec.changed_head(commit)
    for value in written:
        encoded = value if isinstance(value, bytes) else str(value).encode()
        assert len(encoded) <= 64


def test_entries_begin_with_what_scripts_compare() -> None:
    """An inbox entry begins with its request id, an outcome with the body's digest."""
    assert record_codec.item(store_samples.item("r-1")).startswith(b"r-1\0")
    assert record_codec.outcome(store_samples.done(digest="d-1")).startswith(b"d-1\0")


def test_keys_of_a_session_share_their_slot() -> None:
    """Every key of a session, and its channel, carry the tag that decides the slot."""
    key = records.SessionKey("acme", "chat")
    for name in (keys.head, keys.hot, keys.inbox, keys.dedup, keys.checkpoints, keys.live):
        assert name(key).startswith("{acme/chat}:")
