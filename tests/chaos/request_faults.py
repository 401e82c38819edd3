"""Faults of those who call: the same thing several times, too much at once, and nonsense."""

import asyncio
import collections
import contextlib
import pathlib
import random
import shutil
import tempfile
from collections.abc import AsyncIterator

import grpc
from grpc import aio

from fault import Cost, Wrong, fault
from torpor import client, errors, limits
from torpor.testing import eventually, witness, witness_client
from torpor.v1 import sessions_pb2
from world import World

#: Requests of a round of nonsense at each gateway.
_NONSENSE = 8
#: Sends of a burst beyond those that the mailbox takes.
_TOO_MANY = 40
#: All of a burst is handled within this, also where the session has yet to start.
_BURST_TIMEOUT_S = 40.0
_ANSWER_TIMEOUT_S = 10.0
_SEND = "/torpor.v1.Sessions/SendMessage"
_METHODS = (_SEND, "/torpor.v1.Sessions/DeleteSession", "/torpor.v1.Sessions/NoSuchMethod")
#: What a gateway says to nonsense.
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
#: What comes of a call that got no answer: the gateway, or what it needs, may be broken just now.
_UNANSWERED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


@fault("requests delivered several times", cost=Cost.CHEAP)
async def duplicated(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Every append reaches two gateways at once, and one of them again."""
    world.duplicate = rng.randint(2, 4)
    try:
        yield
    finally:
        world.duplicate = 1


@fault("nonsense at the gateways", cost=Cost.CHEAP)
async def nonsense(world: World, rng: random.Random) -> AsyncIterator[None]:
    """Bytes that are no messages, messages that are too large, and bytes that are not even HTTP."""
    key = world.api_keys[rng.choice(sorted(world.api_keys))]
    for gateway in sorted(world.gateways):
        await send_noise(gateway, rng.randbytes(rng.randrange(1, 64 << 10)))
        for _ in range(_NONSENSE):
            method, body, bearer = a_request(rng, key)
            check_refusal(await refusal(gateway, method, body, bearer), f"{gateway}, {method}")
    yield


@fault("burst beyond a session's mailbox", cost=Cost.EXPENSIVE)
async def burst(world: World, rng: random.Random) -> AsyncIterator[None]:
    """More wait for one session than may: those beyond are refused, and nobody else is lost."""
    tenant, name = rng.choice(sorted(world.api_keys)), f"burst-{rng.randrange(1 << 32):08x}"
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                client.connect(
                    gateway,
                    api_key=world.api_keys[tenant],
                    timeout_s=_BURST_TIMEOUT_S,
                    policy=client.Policy(attempts_max=1),
                )
            )
            for gateway in sorted(world.gateways)
        ]
        await clients[0].sessions.create(witness_client.AGENT, session_id=name)
        handles = [each.sessions.handle(name) for each in clients]
        answers = await _flood(handles)
        events = [event async for event in handles[0].events()]
        check_burst(
            answers, [event.data["token"] for event in events if event.type == witness.TOKEN]
        )
        yield
        await handles[0].delete()


async def _flood(handles: list[client.Session]) -> dict[str, errors.TorporError | None]:
    """Hold a turn, and send until the mailbox is full; returns what came of each token."""
    answers: dict[str, errors.TorporError | None] = {}
    gate = pathlib.Path(await asyncio.to_thread(tempfile.mkdtemp)) / "open"

    async def send(number: int) -> None:
        data = {} if number else {"wait": str(gate)}
        try:
            await handles[number % len(handles)].send(f"append t{number}", data=data)
        except errors.TorporError as error:
            answers[f"t{number}"] = error
        else:
            answers[f"t{number}"] = None

    async def someone_is_refused() -> bool:
        return any(isinstance(answer, errors.MailboxFull) for answer in answers.values())

    async def first_is_there() -> bool:
        return await asyncio.to_thread(gate.with_name(f"{gate.name}.here").exists)

    sends = [asyncio.create_task(send(0))]
    try:
        # Whatever came before it would be answered, and not wait.
        await eventually.assert_eventually(first_is_there, _BURST_TIMEOUT_S)
        many = range(1, limits.MAILBOX_MAX + _TOO_MANY)
        sends += [asyncio.create_task(send(i)) for i in many]
        await eventually.assert_eventually(someone_is_refused, _BURST_TIMEOUT_S)
    finally:
        gate.touch()
        await asyncio.gather(*sends)
        await asyncio.to_thread(shutil.rmtree, gate.parent)
    return answers


def check_burst(answers: dict[str, errors.TorporError | None], history: list[str]) -> None:
    """Raise unless what was answered is in the history once, and what was refused never is.

    Raises:
        Wrong: that is not so.
    """
    count = collections.Counter(history)
    wrong = []
    for token, answer in answers.items():
        if isinstance(answer, errors.ResourceExhausted):
            allowed = {0}
        else:
            allowed = {1} if answer is None else {0, 1}
        if count[token] not in allowed:
            wrong.append(f"{token} is there {count[token]} times, its answer was {answer!r}")
    if wrong:
        raise Wrong("; ".join(wrong))


def check_refusal(said: grpc.StatusCode, where: str) -> None:
    """Raise unless nonsense was refused as such.

    Raises:
        Wrong: it was answered with something else.
        RuntimeError: it was not answered.
    """
    if said in _UNANSWERED:
        raise RuntimeError(f"{where}: nonsense was not answered: {said}")
    if said not in REFUSALS:
        raise Wrong(f"{where}: nonsense was answered with {said}")


def a_request(rng: random.Random, key: str) -> tuple[str, bytes, str]:
    """Return a method, a body and an API key that no gateway may take together."""
    method = rng.choice(_METHODS)
    # Ten bytes that each say that a number goes on: no message begins so.
    garbage = b"\xff" * 10 + rng.randbytes(rng.randrange(1 << 10))
    too_long = "x" * (limits.MESSAGE_BYTES_MAX + rng.randrange(1, 1 << 10))
    message = sessions_pb2.SendMessageRequest(session_id="none", text=too_long)
    return rng.choice(
        [
            (method, garbage, key),
            (method, b"", key),
            (method, garbage, "no-such-key"),
            (_SEND, message.SerializeToString(), key),
            (_SEND, bytes(limits.GRPC_REQUEST_BYTES_MAX + 1), key),
        ]
    )


async def refusal(gateway: str, method: str, body: bytes, bearer: str) -> grpc.StatusCode:
    """Return how a gateway ends a call of these bytes."""
    options = (("grpc.max_send_message_length", -1),)
    async with aio.insecure_channel(gateway, options=options) as channel:
        call = channel.unary_unary(method)(
            body,
            metadata=(("authorization", f"Bearer {bearer}"),),
            timeout=_ANSWER_TIMEOUT_S,
        )
        try:
            await call
        except aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def send_noise(gateway: str, noise: bytes) -> None:
    """Send bytes that are no HTTP, and leave; whoever listens may end it sooner."""
    host, _, port = gateway.rpartition(":")
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(noise)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()
        await writer.wait_closed()
