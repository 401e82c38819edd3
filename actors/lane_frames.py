"""What travels on a lane: frames, one a call and one an answer.

    length of the payload   4 bytes, little-endian
    call                    4 bytes: the caller's number, and the same in the answer
    kind                    1 byte: a `Kind` in a call, 0 in an answer
    payload

The first call of a connection is `HELLO`: bytes that the caller chose, and the proof that this very
activation is meant. The answer proves that it is this activation which answers, to these bytes: a
port or path of the dead may be somebody else's by now. What follows may be answered in any order.
"""

import enum
import hashlib
import hmac
import struct
from typing import NamedTuple

from torpor import errors, limits

_HEADER = struct.Struct("<IIB")
HEADER_BYTES = _HEADER.size

#: A request has passed the gateway's gRPC server, and msgpack is shorter than JSON.
CALL_BYTES_MAX = limits.GRPC_REQUEST_BYTES_MAX
#: An answer has to pass it on its way back.
ANSWER_BYTES_MAX = limits.GRPC_RESPONSE_BYTES_MAX
PROOF_BYTES = 32
#: What the caller chooses, so that no proof is of use a second time.
CHALLENGE_BYTES = 16
#: What a peer may send before it has shown its proof.
HELLO_BYTES = CHALLENGE_BYTES + PROOF_BYTES


class Kind(enum.IntEnum):
    """What a frame asks for."""

    HELLO = 0
    DELIVER = 1
    CONTROL = 2
    PLACE_FILE = 3
    DRAIN_INBOX = 4
    #: Of the node's agent alone, since whoever comes later finds the process bound.
    BIND = 5
    BOOTED = 6
    #: To a node's agent.
    ACTIVATE = 7


class Frame(NamedTuple):
    """One frame, as it came."""

    call: int
    kind: int
    payload: bytes


def pack(call: int, kind: int, payload: bytes) -> bytes:
    """Return a frame as bytes."""
    return _HEADER.pack(len(payload), call, kind) + payload


class Secret(NamedTuple):
    """What only a process and those who may call it can prove to know.

    Of a session's process at first the one that made it, from its binding on those who have read
    the session's head; of a node's agent those who have read its node's record.
    """

    #: The session's; of a slot that is not bound the folder's name; of a node's agent the node.
    key: object
    epoch: int
    nonce: str

    def hello(self, challenge: bytes) -> bytes:
        """Return what a caller says; `challenge` are `CHALLENGE_BYTES` that nobody can foresee."""
        return challenge + self._proof(b"torpor-hello", challenge)

    def greets(self, said: bytes) -> bool:
        """Whether this is a caller's hello to this activation."""
        return hmac.compare_digest(said, self.hello(said[:CHALLENGE_BYTES]))

    def welcome(self, hello: bytes) -> bytes:
        """Return what the activation answers to a hello."""
        return self._proof(b"torpor-welcome", hello)

    def _proof(self, person: bytes, said: bytes) -> bytes:
        return hashlib.blake2b(
            said + f"{self.key} {self.epoch}".encode(),
            digest_size=PROOF_BYTES,
            key=self.nonce.encode(),
            person=person,
        ).digest()


class FrameReader:
    """Cuts a stream of bytes into frames; holds at most one frame that is not complete."""

    def __init__(self, payload_bytes_max: int) -> None:
        #: May be raised while reading.
        self.payload_bytes_max = payload_bytes_max
        self._buffer = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Add what has arrived."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next(self) -> Frame | None:
        """Return the next frame, None while it is not complete.

        Raises:
            MessageTooLarge: its payload would be larger than it may be; nothing of it is kept.
        """
        start = self._at + HEADER_BYTES
        if len(self._buffer) < start:
            return None
        length, call, kind = _HEADER.unpack_from(self._buffer, self._at)
        if length > self.payload_bytes_max:
            self._buffer.clear()
            self._at = 0
            raise errors.MessageTooLarge(
                f"a frame of {length} bytes on a lane; {self.payload_bytes_max} are allowed"
            )
        if len(self._buffer) < start + length:
            return None
        self._at = start + length
        return Frame(call, kind, bytes(memoryview(self._buffer)[start : self._at]))
