"""Frames of lanes: any stream of bytes, in any pieces, and nothing beyond the bound."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor import errors
from torpor.actors import lane_frames

BYTES_MAX = 64


def read_all(reader: lane_frames.FrameReader) -> list[lane_frames.Frame]:
    """Return the frames that are complete."""
    return list(iter(reader.next, None))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return the data cut at these places."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


@settings(deadline=None)
@given(
    frames=st.lists(
        st.builds(
            lane_frames.Frame,
            st.integers(0, 2**32 - 1),
            st.integers(0, 255),
            st.binary(max_size=BYTES_MAX),
        ),
        max_size=6,
    ),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_frames_arrive_whole_however_they_are_cut(
    frames: list[lane_frames.Frame], cuts: list[int]
) -> None:
    """What was packed is what is read, in order, whatever the pieces."""
    stream = b"".join(lane_frames.pack(*frame) for frame in frames)
    reader = lane_frames.FrameReader(BYTES_MAX)
    read = []
    for piece in pieces(stream, cuts):
        reader.feed(piece)
        read += read_all(reader)
    assert read == frames


@settings(deadline=None)
@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_any_bytes_are_frames_or_refused(data: bytes, cuts: list[int]) -> None:
    """Noise raises the one error that is named, and never keeps more than a frame."""
    reader = lane_frames.FrameReader(BYTES_MAX)
    try:
        for piece in pieces(data, cuts):
            reader.feed(piece)
            for frame in read_all(reader):
                assert len(frame.payload) <= BYTES_MAX
            assert len(reader._buffer) - reader._at <= lane_frames.HEADER_BYTES + BYTES_MAX
    except errors.MessageTooLarge:
        assert not reader._buffer


def test_a_frame_that_is_too_large_is_refused_by_its_header() -> None:
    """Nothing is waited for, let alone made room for."""
    reader = lane_frames.FrameReader(BYTES_MAX)
    reader.feed(lane_frames.pack(1, 1, bytes(BYTES_MAX + 1))[: lane_frames.HEADER_BYTES])
    with pytest.raises(errors.MessageTooLarge):
        reader.next()


def test_a_proof_is_of_one_activation() -> None:
    """Session, epoch, nonce and challenge: another of any of them is another proof, both ways."""
    secrets = [
        lane_frames.Secret(key, epoch, nonce)
        for key in ("acme/s1", "acme/s2")
        for epoch in (1, 11)
        for nonce in ("a" * 32, "b" * 32)
    ]
    challenges = [bytes([number]) * lane_frames.CHALLENGE_BYTES for number in range(2)]
    hellos = [secret.hello(each) for secret in secrets for each in challenges]
    assert {len(each) for each in hellos} == {lane_frames.HELLO_BYTES}
    assert [sum(secret.greets(each) for secret in secrets) for each in hellos] == [1] * 16
    said = {each[lane_frames.CHALLENGE_BYTES :] for each in hellos}
    answered = {secret.welcome(each) for secret in secrets for each in hellos}
    assert (len(said), len(answered), said & answered) == (16, 128, set())


def test_a_proof_holds_for_its_challenge_alone() -> None:
    """What was said once is of no use with other bytes, nor when it is cut."""
    secret = lane_frames.Secret("acme/s1", 1, "a" * 32)
    hello = secret.hello(bytes(lane_frames.CHALLENGE_BYTES))
    assert secret.greets(hello)
    assert not secret.greets(b"x" * lane_frames.CHALLENGE_BYTES + hello[-lane_frames.PROOF_BYTES :])
    assert not any(secret.greets(hello[:count]) for count in range(len(hello)))
