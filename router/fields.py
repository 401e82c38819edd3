"""Checking what requests bring, so that an error names the field."""

from collections.abc import Mapping
from typing import Any, TypeVar

import blake3
import msgspec

from torpor import errors, ids, limits, messages
from torpor.router import call
from torpor.storage import records

T = TypeVar("T")

#: 128 bits tell two bodies under one request id apart.
_BODY_DIGEST_CHARS = 32
#: 80 bits: no two sessions of a tenant meet by chance.
_SESSION_ID_CHARS = 20


def session_key(session_id: str) -> records.SessionKey:
    """Return the caller's session of this id.

    Raises:
        InvalidField
    """
    return records.SessionKey(call.identity.get().tenant, ids.check_name("session_id", session_id))


def session_id(request_id: str) -> str:
    """Return the id of a session whose maker chose none: the same for the same request."""
    identity = call.identity.get()
    digest = blake3.blake3(f"{identity.tenant}/{request_id}".encode()).hexdigest()
    return f"s-{digest[:_SESSION_ID_CHARS]}"


def request_id(value: str) -> str:
    """Return the request id of a call that is idempotent by itself; a new one if it has none.

    Raises:
        InvalidField
    """
    return ids.check_request_id(value) if value else ids.random_id("request")


def at_least_zero(field: str, value: int) -> int:
    """Return `value`.

    Raises:
        InvalidField: it is negative.
    """
    if value < 0:
        raise errors.InvalidField(f"{field} must not be negative", field=field)
    return value


def one_of(field: str, value: int, table: Mapping[Any, T]) -> T:
    """Return what an enum's value stands for.

    Raises:
        InvalidField: the value is not known.
    """
    if value not in table:
        raise errors.InvalidField(f"{field} has no value {value}", field=field)
    return table[value]


def page_size(value: int, *, default: int, size_max: int) -> int:
    """Return the size of a page: `default` for 0, at most `size_max`.

    Raises:
        InvalidField: it is negative.
    """
    return min(at_least_zero("page_size", value) or default, size_max)


def json_object(field: str, text: str) -> dict[str, Any]:
    """Return the JSON object that a field holds, empty for an empty field.

    Raises:
        InvalidField: it holds something else.
    """
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise errors.InvalidField(f"{field} is not a JSON object: {error}", field=field) from None


def message(*, text: str, data_json: str, request_id: str, sender: str) -> messages.Message:
    """Return the message that the fields make.

    Raises:
        MessageTooLarge: text and data have more than `MESSAGE_BYTES_MAX` bytes together.
        InvalidField
    """
    size_bytes = len(text.encode()) + len(data_json.encode())
    if size_bytes > limits.MESSAGE_BYTES_MAX:
        raise errors.MessageTooLarge(
            f"the message has {size_bytes} bytes, {limits.MESSAGE_BYTES_MAX} are allowed; "
            "write a file into the workspace instead",
            bytes=size_bytes,
        )
    data = json_object("data_json", data_json)
    try:
        msgspec.msgpack.encode(data)
    except (OverflowError, RecursionError) as error:
        # As it travels and is kept, integers have 64 bits.
        raise errors.InvalidField(f"data_json cannot be kept: {error}", field="data_json") from None
    return messages.Message(
        text=text,
        data=data,
        request_id=ids.check_request_id(request_id),
        sender=ids.check_name("sender", sender or "user"),
    )


def body_digest(said: messages.Message) -> str:
    """Return what must be the same when a request id is used again."""
    body = msgspec.json.encode((said.text, said.data, said.sender), order="deterministic")
    return blake3.blake3(body).hexdigest()[:_BODY_DIGEST_CHARS]
