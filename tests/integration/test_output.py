"""What session code prints: in the turn's event, bounded, and in the session's log."""

import pytest
from shared_cluster import events

from torpor import client, errors, limits, messages


async def test_printed_text_is_in_history_and_log(session: client.Session) -> None:
    """Both streams of each turn are events of it, and in the log when the process is gone."""
    reply = await session.send("import sys; print('out'); print('err', file=sys.stderr)")
    await session.send("pass")
    await session.send("print('later')")
    await session.evict()
    first, second = await events(session, messages.AGENT_OUTPUT)
    assert (dict(first.data), first.version) == (
        {"stdout": "out\n", "stderr": "err\n"},
        reply.version,
    )
    assert dict(second.data) == {"stdout": "later\n"}
    await session.send("print('awake')")
    log = (await session.logs()).decode()
    assert [line for line in log.splitlines() if line] == ["out", "err", "later", "awake"]


async def test_printed_text_is_bounded(session: client.Session) -> None:
    """Of very much text the event has the beginning and says what it left out; the log has all."""
    dropped = 1000
    await session.send(f"print('x' * {limits.OUTPUT_CHARS_MAX + dropped}, end='')")
    (printed,) = await events(session, messages.AGENT_OUTPUT)
    assert printed.data["stdout"] == "x" * limits.OUTPUT_CHARS_MAX
    assert printed.data["stdout_dropped"] == dropped
    assert len(await session.logs()) == limits.OUTPUT_CHARS_MAX + dropped


async def test_log_is_bounded(session: client.Session) -> None:
    """A session that prints without end keeps two log files' worth of it, the newest."""
    piece = 1 << 20
    pieces = 3 * limits.LOG_FILE_BYTES_MAX // piece
    await session.send(f"for i in range({pieces}): print(chr(97 + i) * {piece - 1})")
    log = await session.logs()
    assert limits.LOG_FILE_BYTES_MAX <= len(log) <= 2 * (limits.LOG_FILE_BYTES_MAX + piece)
    assert log.endswith(bytes([97 + pieces - 1]) * (piece - 1) + b"\n")


async def test_failed_turn_keeps_its_output(session: client.Session) -> None:
    """What a turn printed before it failed is in the history beside the error."""
    with pytest.raises(errors.TurnFailed):
        await session.send("print('so far'); raise ValueError('no further')")
    (printed,) = await events(session, messages.AGENT_OUTPUT)
    assert printed.data["stdout"] == "so far\n"
