"""What the command line says of errors, and what it leaves out."""

import pytest

from torpor import errors
from torpor.cli import failures

UNREACHABLE = "no gateway answers at localhost:7420 ({}); is it running, and is the address right?"


@pytest.mark.parametrize(
    ("internals", "said"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
            "Failed to connect to remote host: Connection refused",
            "connection refused",
        ),
        (
            "errors resolving nowhere: [field:hostname lookup error:address lookup failed for "
            "nowhere: Domain name not found]",
            "domain name not found",
        ),
        ("Socket closed", "socket closed"),
        ("last error: Connection timed out (110)", "connection timed out (110)"),
    ],
)
def test_a_gateway_that_is_not_there(internals: str, said: str) -> None:
    """Of what gRPC says the last part is told."""
    told = failures.message(errors.Unavailable(UNREACHABLE.format(internals)))
    assert told == f"no gateway answers at localhost:7420: {said}; is `torpor dev` running?"


def test_a_missing_key() -> None:
    """Somebody at a terminal hears of options and folders, not of headers."""
    told = failures.message(errors.ApiKeyMissing())
    assert "--api-key or TORPOR_API_KEY" in told
    assert "authorization" not in told


def test_an_agent_that_cannot_be_imported() -> None:
    """The import system's own frames are left out; only a missing module is a matter of folders."""
    frozen = '  File "<frozen importlib._bootstrap>", line 1204, in _gcd_import'
    syntax = '  File "/a.py", line 1\n    class A(:\n            ^\nSyntaxError: invalid syntax'
    broken = errors.AgentImportFailed(f"cannot import a:A\n{frozen}\n{syntax}")
    assert failures.message(broken) == f"cannot import a:A\n{syntax}"
    assert failures.remedy(broken) == ""
    missing = errors.AgentImportFailed("cannot import a:A: ModuleNotFoundError: No module 'a'")
    assert "in the folder of the module" in failures.remedy(missing)


def test_the_history_has_only_what_was_committed() -> None:
    """A message that was given up without an event is not looked for in the history."""
    assert failures.remedy(errors.TurnTimedOut(session="s")) == ""
    assert "sessions logs s" in failures.remedy(errors.MessageGivenUp(session="s"))
    assert "sessions logs s" in failures.remedy(errors.MessageGivenUp(session="s", seq=0))
    assert "sessions history s" in failures.remedy(errors.MessageGivenUp(session="s", seq=7))
