"""How many durable turns a second one gateway takes to many sessions."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from loadtests import figures, plain_chain, world

SESSIONS = 32
#: Turns of each session in one round, and rounds of each of the two, in turns.
TURNS, ROUNDS = 40, 3
#: Turns of each session before the first round.
WARM_TURNS = 5


async def throughput(here: world.World) -> list[figures.Figure]:
    """Turns a second of 32 sessions at once, against the plain chain with as many."""
    sessions = [await here.session("ledger") for _ in range(SESSIONS)]
    message = world.MESSAGE.encode()
    ours, plain = [], []
    async with plain_chain.chain(here.local.deployment.store_url, SESSIONS) as call:

        async def turn(number: int) -> None:
            await sessions[number].send(world.MESSAGE)

        async def plain_turn(number: int) -> None:
            if await call(number, message) != message[::-1]:
                raise RuntimeError("the plain chain answered something else")

        # Sessions and actors come up here.
        await _per_second(turn, WARM_TURNS)
        await _per_second(plain_turn, WARM_TURNS)
        for _ in range(ROUNDS):
            ours.append(await _per_second(turn, TURNS))
            plain.append(await _per_second(plain_turn, TURNS))
    return [
        figures.figure(
            f"durable turns a second, {SESSIONS} sessions, p50 of {ROUNDS} rounds",
            "turns/s",
            figures.p50(ours),
            floor=figures.p50(plain),
            target=2.0,
            better="higher",
            against="gRPC gateway → Ray actor → fenced script with fsync, as many sessions, "
            f"p50 of {ROUNDS} rounds of {SESSIONS * TURNS} turns, taken in turns",
        )
    ]


async def _per_second(turn: Callable[[int], Awaitable[None]], times: int) -> float:
    async def one(number: int) -> None:
        for _ in range(times):
            await turn(number)

    began_s = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(SESSIONS)))
    return SESSIONS * times / (time.perf_counter() - began_s)
