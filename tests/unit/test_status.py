"""The table between errors and gRPC statuses."""

import os

import grpc
import pytest
from grpc import aio

from torpor import errors, status

LEAVES = sorted(set(errors._BY_REASON.values()), key=lambda cls: cls.__name__)


def rpc_error(answer: status.Status) -> aio.AioRpcError:
    """What a client gets when a server aborts with this status."""
    return aio.AioRpcError(
        answer.code,
        initial_metadata=aio.Metadata(),
        trailing_metadata=aio.Metadata(*answer.trailing_metadata),
        details=answer.details,
    )


def bare(code: grpc.StatusCode, details: str = "nothing listens") -> aio.AioRpcError:
    """A failure that gRPC itself reports."""
    return rpc_error(status.Status(code, details, ()))


@pytest.mark.parametrize("cls", LEAVES)
def test_every_error_survives_the_wire(cls: type[errors.TorporError]) -> None:
    """Class, message, ids and retry advice come back as they were sent."""
    sent = cls("what happened", session="s-1", seq=7)
    got = status.failure(rpc_error(status.to_status(sent)))
    assert type(got.error) is cls
    assert (got.error.message, got.error.ids) == (sent.message, sent.ids)
    expected_s = status.row(sent).retry_after_s if cls.retryable else 0.0
    assert got.retry_after_s == pytest.approx(expected_s)


def test_each_branch_has_its_own_code() -> None:
    """No two rows share a code, so a code alone names the branch; every branch has a row."""
    codes = [row.code for row in status.TABLE.values()]
    assert len(set(codes)) == len(codes)
    assert set(errors.TorporError.__subclasses__()) == set(status.TABLE)


def test_unknown_reason_falls_back_to_the_code() -> None:
    """A newer server's reason still gives the right branch, with its message and ids."""

    class Newer(errors.FailedPrecondition):
        reason = "FROM_THE_FUTURE"

    got = status.from_rpc_error(rpc_error(status.to_status(Newer("not yet", node="n"))))
    assert type(got) is errors.FailedPrecondition
    assert (got.message, got.ids) == ("not yet", {"node": "n"})


def test_nobody_listens() -> None:
    """UNAVAILABLE without details names the address."""
    got = status.from_rpc_error(bare(grpc.StatusCode.UNAVAILABLE), address="host:1")
    assert type(got) is errors.Unavailable
    assert "host:1" in got.message
    assert "nothing listens" in got.message


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.UNKNOWN, errors.Internal),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Internal),
    ],
)
def test_codes_of_grpc_itself(code: grpc.StatusCode, cls: type[errors.TorporError]) -> None:
    """What gRPC reports on its own becomes an error of ours too."""
    assert type(status.from_rpc_error(bare(code))) is cls


def test_an_answer_that_grpc_has_lost() -> None:
    """The gateway had ended an upload with an answer while the client still sent: ask again."""
    got = status.from_rpc_error(bare(grpc.StatusCode.INTERNAL, "Internal error from Core"))
    assert type(got) is errors.Unavailable
    assert got.retryable


def test_long_messages_fit_into_headers() -> None:
    """A long message is cut at a character's border, and what is sent stays below 8 KiB."""
    answer = status.to_status(errors.InvalidField("é" * 9_000, path="ü" * 9_000))
    assert 0 < len(answer.details) <= status.MESSAGE_BYTES_MAX
    percent_encoded = 3 * len(answer.details.encode())
    base64 = sum(len(value) for _, value in answer.trailing_metadata) * 4 // 3
    assert percent_encoded + base64 < 8 << 10


def test_of_a_long_message_both_ends_are_told() -> None:
    """A traceback says at its beginning what failed, and at its end why."""
    answer = status.to_status(errors.AgentImportFailed("cannot import m:C\n" + "x" * 5_000 + "why"))
    assert answer.details.startswith("cannot import m:C\n")
    assert answer.details.endswith("why")


def test_a_name_that_is_not_utf_8_does_not_break_the_answer() -> None:
    """A file's name may hold any bytes, and errors name files."""
    name = os.fsdecode(b"\xff.txt")
    answer = status.to_status(errors.WorkspaceFileNotFound(f"there is no {name}", path=name))
    assert answer.details == "there is no ?.txt"
