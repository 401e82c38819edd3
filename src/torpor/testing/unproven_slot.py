"""A slot without a process, for tests of the node's agent."""

import asyncio
from typing import Any

from torpor.actors import lifecycle, slot_board, slot_process


class Method:
    """A method of a session's process, as Ray would call it; silent until told its answer."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def remote(self, *arguments: Any) -> asyncio.Future[Any]:
        """Note the call."""
        self.calls.append(arguments)
        shielded: asyncio.Future[Any] = asyncio.shield(self.answer)
        return shielded


class Handle:
    """A session's process."""

    def __init__(self) -> None:
        self.leave, self.control, self.ping = Method(), Method(), Method()


class UnprovenSlot(slot_process.Slot):
    """A slot whose process is a number on paper."""

    killed = False
    phase = lifecycle.Phase.IDLE
    quiet_s = 0.0

    def activity(self) -> slot_board.Activity | None:
        """Say what the test says, until it is dead."""
        if self.killed:
            return None
        return slot_board.Activity(pid=0, phase=self.phase, turns=1, quiet_s=self.quiet_s)

    async def kill(self) -> None:
        """Die at once."""
        self.killed = True
        self.dead.set()
