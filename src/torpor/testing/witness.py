"""An agent that proves with every reply that state, history and files belong together.

Register it as `torpor.testing.witness:Witness`. `append <token>` appends a token to all three in
one turn; `read` only looks. Each reply says how many tokens each of the three holds, and the digest
of them: `chain(n) = blake2b(chain(n - 1), token n)`. `torpor.testing.witness_client` speaks to it.
"""

import asyncio
import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import torpor

#: The event of one token: `{token, n, chain}`.
TOKEN = "witness.token"  # noqa: S105 - no password
#: In the workspace: one token a line.
TOKENS_FILE = "tokens"
BALLAST_FILE = "ballast"
#: What a reply says: numbers and digests of the tokens in history, state and file.
PARTS = frozenset({"n", "chain", "state_n", "state_chain", "file_n", "file_chain"})
#: Of no tokens at all.
NO_CHAIN = ""
#: Where the newest token nearly always is; further back costs more to look.
NEAR_EVENTS = 16
#: Instead of a digest: the ballast beside the tokens is not what was written.
DAMAGED = "damaged"
_SEAL_BYTES = 16
#: Between two looks for the file that a turn waits for.
WAIT_PAUSE_S = 0.02


def link(chain: str, token: str) -> str:
    """Return the digest of the tokens that `chain` stands for and one more."""
    return hashlib.blake2b(f"{chain} {token}".encode(), digest_size=16).hexdigest()


def sealed(size_bytes: int) -> bytes:
    """Return so many bytes: random ones behind the digest of them."""
    noise = os.urandom(size_bytes - _SEAL_BYTES)
    return hashlib.blake2b(noise, digest_size=_SEAL_BYTES).digest() + noise


def is_whole(ballast: bytes) -> bool:
    """Whether these are all the bytes that `sealed` returned, unchanged."""
    seal = hashlib.blake2b(ballast[_SEAL_BYTES:], digest_size=_SEAL_BYTES).digest()
    return ballast[:_SEAL_BYTES] == seal


def chain_of(tokens: Iterable[str]) -> str:
    """Return the digest of tokens in their order."""
    chain = NO_CHAIN
    for token in tokens:
        chain = link(chain, token)
    return chain


class Witness(torpor.Agent):
    """Keeps tokens three times over.

    A message's data may hold `blob`, a number: so many KiB of new random bytes go to the state and
    to a file, so that blobs are written, and replies prove that they are unchanged; and `wait`, a
    path: the turn makes the file `<path>.here`, and lasts until the one at the path exists.
    """

    idle_timeout = "20s"
    turn_timeout = "60s"

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.chain = NO_CHAIN
        self.ballast = b""

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> torpor.Reply:
        """Append or read."""
        verb, _, token = message.text.partition(" ")
        if verb not in ("append", "read"):
            raise ValueError(f"{message.text!r} is neither 'append <token>' nor 'read'")
        n, chain = await _in_history(ctx)
        if verb == "append":
            n, chain = n + 1, link(chain, token)
            await self._append(ctx, token, n, chain)
        if kib := int(message.data.get("blob", 0)):
            self.ballast = sealed(kib << 10)
            (ctx.workspace / BALLAST_FILE).write_bytes(sealed(kib << 10))
        if path := message.data.get("wait"):
            await asyncio.to_thread(pathlib.Path(f"{path}.here").touch)
            # Another process makes the file; no event tells of it.
            while not await asyncio.to_thread(pathlib.Path(path).exists):  # noqa: ASYNC110
                await asyncio.sleep(WAIT_PAUSE_S)
        return torpor.Reply(data=self._counted(ctx, n, chain))

    async def _append(self, ctx: torpor.Context, token: str, n: int, chain: str) -> None:
        self.tokens.append(token)
        self.chain = link(self.chain, token)
        with (ctx.workspace / TOKENS_FILE).open("a") as file:
            file.write(f"{token}\n")
        # With what history says, not with what the state says: a checker is to see them disagree.
        await ctx.emit(TOKEN, {"token": token, "n": n, "chain": chain})

    def _counted(self, ctx: torpor.Context, n: int, chain: str) -> dict[str, Any]:
        path, ballast = ctx.workspace / TOKENS_FILE, ctx.workspace / BALLAST_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        is_state_whole = not self.ballast or is_whole(self.ballast)
        is_file_whole = not ballast.exists() or is_whole(ballast.read_bytes())
        return {
            "n": n,
            "chain": chain,
            "state_n": len(self.tokens),
            "state_chain": self.chain if is_state_whole else DAMAGED,
            "file_n": len(lines),
            "file_chain": chain_of(lines) if is_file_whole else DAMAGED,
        }


async def _in_history(ctx: torpor.Context) -> tuple[int, str]:
    newest = [event for event in await ctx.history.tail(NEAR_EVENTS) if event.type == TOKEN]
    if not newest:
        newest = await ctx.history.tail(1, types=(TOKEN,))
    if not newest:
        return 0, NO_CHAIN
    return int(newest[-1].data["n"]), str(newest[-1].data["chain"])
