"""`torpor serve`, kept running as an operator's supervisor does."""

import asyncio
import contextlib
import pathlib
import subprocess
from types import TracebackType
from typing import Self

import machine

#: A control plane that ended is started again after this; it ends if Ray is away.
_PAUSE_S = 1.0
_STOP_TIMEOUT_S = 20.0


class ControlPlane:
    """An async context manager: runs on one machine, and is started again whenever it ends."""

    def __init__(self, head: machine.Machine, settings: pathlib.Path) -> None:
        self._head = head
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._keeping: asyncio.Task[None] | None = None
        #: How often it ended by itself, with which exit codes.
        self.ended: list[int] = []

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        if self._process is not None:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, _STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def kill(self) -> None:
        """Kill it; another one is started."""
        if self._process is not None:
            self._process.kill()

    async def _keep(self) -> None:
        while True:
            self._process = self._head.start(
                "serve.log",
                *(str(machine.TOOLS / "torpor"), "serve", "--config", str(self._settings)),
                environment={"RAY_ADDRESS": f"{self._head.address}:{machine.GCS_PORT}"},
            )
            self.ended.append(await asyncio.to_thread(self._process.wait))
            await asyncio.sleep(_PAUSE_S)
