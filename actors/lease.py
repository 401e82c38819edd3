"""A node's lease: what keeps its owners in office, renewed by a thread that does nothing else."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from torpor import errors
from torpor.storage import store

log = logging.getLogger(__name__)

#: Renewals in one lifetime of the lease (the ratio that Pekko's lease majority uses): nine may
#: fail.
RENEWALS_PER_TTL = 10
#: A node agent that is silent for so long hangs, and nobody could have its dead owners buried. Far
#: above what an import or a stalled disk takes.
SILENCE_MAX_S = 30.0


class LeaseKeeper:
    """Renews one incarnation's lease until told to stop, or until it has lapsed.

    A thread and an event loop of its own, so that nothing that keeps the node agent's loop busy
    for a while can let the lease lapse. It renews and never re-creates: a lapsed incarnation is
    over.

    With each renewal it calls `knock`, which is to have `answer` called from the agent's loop;
    after `silence_max_s` without an answer it lets the lease go.
    """

    def __init__(
        self,
        open_store: Callable[[], store.Store],
        *,
        node: str,
        incarnation: str,
        ttl_ms: int,
        on_lapse: Callable[[], object],
        knock: Callable[[], object],
        silence_max_s: float = SILENCE_MAX_S,
    ) -> None:
        self._open_store = open_store
        self._node = node
        self._incarnation = incarnation
        self._ttl_ms = ttl_ms
        self._on_lapse = on_lapse
        self._knock = knock
        self._silence_max_s = silence_max_s
        self._answered_s = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Begin to renew; the lease was claimed before."""
        self._thread.start()

    def stop(self) -> None:
        """Renew no more; the lease runs out, or is dropped by whoever stops the keeper."""
        self._stop.set()

    def answer(self) -> None:
        """Say that the node agent's loop runs."""
        self._answered_s = time.monotonic()

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except Exception:
            # Nobody renews it any more, and the node must not go on as if somebody did.
            log.exception("lease lost", extra={"action": "lease_lost", "node": self._node})
            self._on_lapse()

    async def _keep(self) -> None:
        opened = self._open_store()
        pause_s = self._ttl_ms / 1000 / RENEWALS_PER_TTL
        # No bound on the loop but the lease itself: it ends when the lease does.
        while not await asyncio.to_thread(self._stop.wait, pause_s):
            self._knock()
            if time.monotonic() - self._answered_s > self._silence_max_s:
                # Its sessions may be taken over; once the loop runs again it drops what is left.
                log.error("agent hangs", extra={"action": "agent_hangs", "node": self._node})
                self._on_lapse()
                break
            try:
                stands = await opened.nodes.renew_lease(
                    self._node, self._incarnation, ttl_ms=self._ttl_ms
                )
            except errors.TorporError:
                # Away is not lapsed: the store says which once it is back, and every write asks it.
                continue
            if not stands:
                log.warning("lease lapsed", extra={"action": "lease_lapsed", "node": self._node})
                self._on_lapse()
                break
        with contextlib.suppress(errors.TorporError):
            await opened.close()
