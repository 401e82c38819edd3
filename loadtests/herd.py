"""All sessions of a lost node, called at once."""

import asyncio
import collections
import contextlib
import functools
import sys
import time
from collections.abc import Sequence

from loadtests import figures, waiting, world
from torpor import errors, messages
from torpor.client.sessions import Session

SESSIONS = 200
#: The node that is lost. Not the head: nothing would be left.
LOST = "node-2"
AT_ONCE = 4
#: A caller that has no answer by then is counted as one that got none.
ANSWER_TIMEOUT_S = 180.0
#: How often the nodes' sessions are counted meanwhile.
LOOK_EVERY_S = 0.5


async def herd(here: world.World) -> list[figures.Figure]:
    """200 sessions of a lost node called at once: who is answered, when, and how often handled."""
    others = [each.name for each in here.local.control.running.values() if each.name != LOST]
    for name in others:
        await here.empty(name)
    sessions = [await here.session("ledger") for _ in range(SESSIONS)]
    turns = [functools.partial(session.send, world.MESSAGE) for session in sessions]
    await waiting.few_at_a_time(turns, AT_ONCE)
    await here.put_back(others)
    there = [(await session.get()).node_name for session in sessions]
    if there.count(LOST) < SESSIONS:
        raise RuntimeError(
            f"{SESSIONS} sessions were to be on {LOST}: {collections.Counter(there)}"
        )
    print(f"losing {LOST}", file=sys.stderr)
    here.local.cluster.kill_node(LOST)
    # Looks after the nodes, as in `torpor dev`.
    keeping = asyncio.create_task(here.local.control.keep())
    fullest = asyncio.create_task(_fullest(here))
    calls = [_called(session, i) for i, session in enumerate(sessions)]
    took_s = [each for each in await asyncio.gather(*calls) if each is not None]
    fullest.cancel()
    share = await fullest
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    handled = [await _handled(session, i) for i, session in enumerate(sessions)]
    here.local.cluster.add(LOST)
    await here.in_service([LOST])
    return _rows(took_s, handled, share)


def _rows(took_s: Sequence[float], handled: Sequence[int], share: float) -> list[figures.Figure]:
    told = f"{SESSIONS} sessions of a lost node called at once"
    count = figures.figure(
        f"herd: {told}, answered",
        "sessions",
        len(took_s),
        floor=SESSIONS,
        target=1.0,
        better="higher",
        against=f"all, within {ANSWER_TIMEOUT_S:g} s",
    )
    once = figures.figure(
        "herd: handled exactly once",
        "sessions",
        handled.count(1),
        floor=SESSIONS,
        target=1.0,
        better="higher",
        against=f"all; most often, by one session's history: {max(handled)}",
    )
    room = figures.figure(
        "herd: sessions of the fullest node",
        "of its slots",
        share,
        floor=1.0,
        target=1.0,
        against=f"all of them; looked at every {LOOK_EVERY_S:g} s",
    )
    if not took_s:
        return [count, once, room]
    return [
        count,
        once,
        room,
        figures.figure(f"herd: p50 of {len(took_s)}", "s", figures.p50(took_s)),
        figures.figure(f"herd: p99 of {len(took_s)}", "s", figures.p99(took_s)),
    ]


def _text(number: int) -> str:
    return f"Are you there, number {number}?"


async def _called(session: Session, number: int) -> float | None:
    """Return the seconds to the right answer; None if there is none."""
    began_s = time.perf_counter()
    try:
        reply = await session.send(_text(number), timeout_s=ANSWER_TIMEOUT_S)
    except errors.TorporError as error:
        print(f"not answered: {error}", file=sys.stderr)
        return None
    return time.perf_counter() - began_s if reply.text == _text(number)[::-1] else None


async def _handled(session: Session, number: int) -> int:
    """Return how often the message is in the session's history."""
    texts = [
        event.data.get("text") async for event in session.events(types=[messages.USER_MESSAGE])
    ]
    return texts.count(_text(number))


async def _fullest(here: world.World) -> float:
    """Return the largest share of a node's slots that was in use, up to the cancellation."""
    share = 0.0
    try:
        while True:
            with contextlib.suppress(errors.TorporError):
                nodes = await here.client.admin.nodes()
                used = [n.sessions / n.sessions_max for n in nodes if n.alive and n.name != LOST]
                share = max([share, *used])
            await asyncio.sleep(LOOK_EVERY_S)
    except asyncio.CancelledError:
        return share
