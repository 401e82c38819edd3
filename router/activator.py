"""Waking sessions: one activation per session and gateway, however many callers wait for it."""

import asyncio
import collections
import contextlib
import logging
import random
import time
from collections.abc import Collection

from torpor import clock, errors
from torpor.actors import calls, protocol
from torpor.router import cluster_view, deadline, directory, lru, placement, standing
from torpor.storage import records, store

log = logging.getLogger(__name__)

#: Nodes asked for one activation: by then the cluster is full, and the caller should know.
NODES_TRIED_MAX = 8
#: Times that another claim may come first before the caller is told to try again.
ROUNDS_MAX = 4
#: A node that has not woken a session by then is given up; the claim decides if both succeed.
ACTIVATE_TIMEOUT_S = 30.0
#: Agent versions never change; as many as one gateway plausibly serves.
AGENTS_KEPT_MAX = 1_000
#: How long a check that nobody waits for may take.
UNAWAITED_S = 30.0
#: Sessions that one gateway wakes at a time; flights may outlive the calls that began them.
FLIGHTS_MAX = 2_000


class _Flight:
    """One activation under way, lasting as long as its most patient caller."""

    def __init__(self, until: deadline.Deadline) -> None:
        self.until = until
        self.began_s = time.monotonic()
        self.suspect_epoch = 0
        #: Nodes that are not asked, or not again.
        self.refused: set[str] = set()
        self.task: asyncio.Task[protocol.Seat]


class Activator:
    """Finds the owner of a session, and makes one if there is none."""

    def __init__(
        self,
        stored: store.Store,
        reach: calls.Calls,
        view: cluster_view.ClusterView,
        hints: directory.Directory,
        ticks: clock.Clock,
        rng: random.Random,
    ) -> None:
        self._store = stored
        self._calls = reach
        self._view = view
        self._directory = hints
        self._clock = ticks
        self._rng = rng
        self.inquiry = standing.Inquiry(stored.nodes, reach, ticks, rng)
        self._agents: lru.Lru[tuple[str, str, int], records.AgentVersion] = lru.Lru(AGENTS_KEPT_MAX)
        self._flights: dict[records.SessionKey, _Flight] = {}

    async def locate(
        self,
        key: records.SessionKey,
        until: deadline.Deadline,
        *,
        suspect_epoch: int = 0,
        head: records.Head | None = None,
        excluded: Collection[str] = (),
    ) -> protocol.Seat:
        """Return the session's owner, waking the session if nobody holds it.

        `suspect_epoch` is the epoch of an owner that did not answer, `head` what was just read. On
        nodes `excluded` it is not woken.

        Raises:
            NoCapacity: no node can take the session now.
            TooManyRequests: this gateway wakes as many sessions as it may.
            OwnerUnreachable: the owner does not answer and may not be replaced yet.
            DeadlineExceeded
            SessionNotFound, SessionDeleted, AgentNotFound, StoreUnavailable
            ActivationFailed: no process could be had; what it cannot load its callers hear from it
        """
        task = self._begin(key, until, suspect_epoch, head, excluded)
        return await until.bound(asyncio.shield(task))

    def suspect(self, key: records.SessionKey, epoch: int) -> None:
        """Find out in the background whether an owner that did not answer in time is dead."""
        with contextlib.suppress(errors.TooManyRequests):
            self._begin(key, deadline.Deadline.after(self._clock, UNAWAITED_S), epoch, None, ())

    async def close(self) -> None:
        """End what is under way; nodes that were asked may still wake their session."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def agent(self, head: records.Head) -> records.AgentVersion:
        """Return the agent version that the session is pinned to.

        Raises:
            AgentNotFound, StoreUnavailable
        """
        name = (head.key.tenant, head.agent, head.agent_version)
        version = self._agents.get(name)
        if version is None:
            version = await self._store.catalog.agent(*name)
            self._agents.put(name, version)
        return version

    def _begin(
        self,
        key: records.SessionKey,
        until: deadline.Deadline,
        suspect_epoch: int,
        head: records.Head | None,
        excluded: Collection[str],
    ) -> asyncio.Task[protocol.Seat]:
        flight = self._flights.get(key)
        if flight is None:
            if len(self._flights) >= FLIGHTS_MAX:
                raise errors.TooManyRequests(
                    f"this gateway is waking {FLIGHTS_MAX} sessions; try another one"
                )
            flight = _Flight(deadline.Deadline(self._clock, until.at_s))
            self._flights[key] = flight
            flight.task = asyncio.create_task(self._fly(key, flight, head))
            flight.task.add_done_callback(lambda task: self._end(key, task))
        flight.until.extend(until)
        flight.suspect_epoch = max(flight.suspect_epoch, suspect_epoch)
        flight.refused.update(excluded)
        return flight.task

    def _end(self, key: records.SessionKey, task: asyncio.Task[protocol.Seat]) -> None:
        del self._flights[key]
        # Looked at here, for the case that all callers have left.
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("not woken: %s", error, extra={"action": "not_woken", "session_id": str(key)})

    async def _fly(
        self, key: records.SessionKey, flight: _Flight, head: records.Head | None
    ) -> protocol.Seat:
        for _ in range(ROUNDS_MAX):
            head = head or await self._store.sessions.head(key)
            seat = await self._owner_of(head, flight)
            if seat is not None:
                self._directory.put(key, seat)
                return seat
            head = None
        raise errors.ActivationFailed(
            f"the session changed hands {ROUNDS_MAX} times while it was being woken; try again",
            session=key.session,
            tenant=key.tenant,
        )

    async def _owner_of(self, head: records.Head, flight: _Flight) -> protocol.Seat | None:
        """Return the owner in office or a new one; None if the head has to be read again."""
        if head.owner is None:
            return await self._activate(head, flight)
        found = await self.inquiry.settle(
            head, suspect_epoch=flight.suspect_epoch, until=flight.until
        )
        if found is standing.Standing.IN_OFFICE:
            return protocol.seat_of(head)
        if found is standing.Standing.VACATED:
            return None
        return await self._activate(head, flight)

    async def _activate(self, head: records.Head, flight: _Flight) -> protocol.Seat | None:
        request = placement.expected(head)
        agent = await self.agent(head)
        failure: errors.TorporError | None = None
        for _ in range(NODES_TRIED_MAX):
            decision = placement.choose(
                self._view.candidates(), request, self._rng, excluded=flight.refused
            )
            if decision is None:
                break
            _explain(head.key, decision)
            try:
                return await self._ask(decision.node, head, agent, request, flight)
            except errors.Fenced:
                return None
            except (errors.NoCapacity, errors.NodeDraining, errors.OwnerUnreachable) as error:
                log.info("node refused: %s", error, extra={"action": "refused"})
                flight.refused.add(decision.node)
            except errors.ActivationFailed as error:
                log.warning("activation failed: %s", error, extra={"action": "activation_failed"})
                flight.refused.add(decision.node)
                # A broken node must not stop a session, nor a broken session go through all nodes.
                if failure is not None:
                    raise
                failure = error
        raise failure or self._no_capacity(head.key, flight.refused)

    def _no_capacity(self, key: records.SessionKey, refused: set[str]) -> errors.NoCapacity:
        reasons = placement.reasons_against(self._view.candidates(), refused).values()
        counted = collections.Counter(reasons).most_common()
        why = ", ".join(f"{count} {reason}" for reason, count in counted) or "there is none"
        return errors.NoCapacity(
            f"no node can take one more session now: {why}", session=key.session, tenant=key.tenant
        )

    async def _ask(
        self,
        node: str,
        head: records.Head,
        agent: records.AgentVersion,
        request: placement.Request,
        flight: _Flight,
    ) -> protocol.Seat:
        flight.until.demand()
        placed = self._view.placed(node, request)
        try:
            record = self._view.record(node)
            async with self._view.office.during(node, record.incarnation):
                activated = await self._calls.activate(
                    record,
                    protocol.Activate(
                        key=head.key,
                        observed_epoch=head.epoch,
                        observed_incarnation=head.owner.incarnation if head.owner else "",
                        agent=agent,
                        # Not the caller's: who asks again after a short one finds it awake.
                        deadline_s=ACTIVATE_TIMEOUT_S,
                        placement_ms=round((time.monotonic() - flight.began_s) * 1000, 2),
                    ),
                    timeout_s=ACTIVATE_TIMEOUT_S,
                )
        except BaseException:
            self._view.withdraw(placed)
            raise
        placed.activating = False
        return protocol.Seat(
            key=head.key, epoch=activated.epoch, nonce=activated.nonce, owner=activated.owner
        )


def _explain(key: records.SessionKey, decision: placement.Decision) -> None:
    scores = " ".join(f"{scored.node[:12]}={scored.total:.3f}" for scored in decision.scores)
    log.info(
        "%s placed on %s: %s; left out: %s",
        key,
        decision.node[:12],
        scores,
        decision.left_out or "none",
        extra={"action": "placed", "session_id": str(key)},
    )
