"""What a gateway knows of the nodes: their published loads, and what it has placed since."""

import logging
import math
from collections.abc import Iterable

import msgspec

from torpor import clock, errors
from torpor.router import office, placement
from torpor.storage import records, store

log = logging.getLogger(__name__)

#: Node agents publish once a second; reading more often shows nothing new.
POLL_S = 1.0
#: A busy machine may skip a beat or two; a load that stood still for longer is old news.
STALE_POLLS = 4
#: A placement counts as a session and as an activation until the second beat after it: the next
#: one may have been measured before the node heard of it.
COUNTED_BEATS = 2
#: The published CPU is smoothed; what a new session adds to it grows about as an exponential with
#: this time constant, so its expected share fades from the correction in the same way.
FADE_BEATS = 3.0
#: After four time constants what is left of it is below what a load is exact to.
KEPT_BEATS = 12


class Placement:
    """One session that this gateway has placed, until the node's own load shows it."""

    def __init__(self, node: str, beat: int, request: placement.Request) -> None:
        self.node = node
        self.beat = beat
        self.request = request
        self.activating = True


class _Seen(msgspec.Struct, kw_only=True):
    """The newest beat of a node, and how many polls it has stood still."""

    incarnation: str
    beat: int
    still: int = 0


class ClusterView:
    """The nodes as this gateway sees them, refreshed once a second."""

    def __init__(self, nodes: store.Nodes, time: clock.Clock) -> None:
        self._nodes = nodes
        self._clock = time
        self._views: list[records.NodeView] = []
        self._records: dict[str, records.NodeRecord] = {}
        self._seen: dict[str, _Seen] = {}
        self._placements: dict[str, list[Placement]] = {}
        #: Ends calls into nodes whose lease is gone.
        self.office = office.Office()

    @property
    def views(self) -> list[records.NodeView]:
        """The nodes as of the last poll that succeeded."""
        return self._views

    async def run(self) -> None:
        """Poll until cancelled. While the store is away the last views stay."""
        while True:
            try:
                await self.refresh()
            except errors.TorporError as error:
                log.warning("nodes not read: %s", error, extra={"action": "view_failed"})
            except Exception:
                # A gateway that stopped looking would go on placing by what it knows, for ever.
                log.exception("nodes not read", extra={"action": "view_failed"})
            await self._clock.sleep(POLL_S)

    async def refresh(self) -> None:
        """Read the nodes once.

        Raises:
            StoreUnavailable
        """
        self._views = await self._nodes.views()
        self.office.note(
            {(view.record.node, view.record.incarnation) for view in self._views if view.alive}
        )
        self._records = {view.record.node: view.record for view in self._views}
        self._seen = {node: seen for node, seen in self._seen.items() if node in self._records}
        for view in self._views:
            self._note_beat(view)
        self._placements = {
            node: kept
            for node, placements in self._placements.items()
            if (kept := [p for p in placements if self._age(p) <= KEPT_BEATS])
        }

    def candidates(self) -> list[placement.Candidate]:
        """Return what placement may choose from; nodes that publish no load yet are left out."""
        return [self._candidate(view, view.load) for view in self._views if view.load is not None]

    def record(self, node: str) -> records.NodeRecord:
        """Return a node that placement may choose."""
        return self._records[node]

    def name(self, node: str) -> str:
        """Return the name that people know a node by; empty for an unknown one."""
        record = self._records.get(node)
        return record.name if record else ""

    def gone(self, owner: records.Owner) -> bool:
        """Whether the node's agent that the owner lived under is known to be out of office."""
        if not self._views:
            return False
        return not any(
            view.alive
            and (view.record.node, view.record.incarnation) == (owner.node, owner.incarnation)
            for view in self._views
        )

    def placed(self, node: str, request: placement.Request) -> Placement:
        """Note that a session is being placed, so that the next choice counts it."""
        seen = self._seen.get(node)
        made = Placement(node, seen.beat if seen else 0, request)
        self._placements.setdefault(node, []).append(made)
        return made

    def withdraw(self, made: Placement) -> None:
        """Forget a placement that the node refused."""
        placements = self._placements.get(made.node, [])
        if made in placements:
            placements.remove(made)

    def _note_beat(self, view: records.NodeView) -> None:
        if view.load is None:
            return
        seen = self._seen.get(view.record.node)
        incarnation, beat = view.load.incarnation, view.load.beat
        if seen is None:
            self._seen[view.record.node] = _Seen(incarnation=incarnation, beat=beat)
        elif seen.incarnation != incarnation:
            # A node that came back dropped what it had; also what was placed on it.
            self._placements.pop(view.record.node, None)
            self._seen[view.record.node] = _Seen(incarnation=incarnation, beat=beat)
        elif seen.beat == beat:
            seen.still += 1
        else:
            seen.beat, seen.still = beat, 0

    def _candidate(self, view: records.NodeView, load: records.NodeLoad) -> placement.Candidate:
        return placement.Candidate(
            node=view.record.node,
            sessions=load.sessions,
            activating=load.activating,
            sessions_max=load.sessions_max,
            cpu=load.cpu,
            memory=load.memory,
            cpus=view.record.cpus,
            memory_bytes=view.record.memory_bytes,
            alive=view.alive,
            draining=load.draining,
            stale=self._seen[view.record.node].still > STALE_POLLS,
            placed_since=correction(
                (made, self._age(made)) for made in self._placements.get(view.record.node, [])
            ),
        )

    def _age(self, made: Placement) -> int:
        seen = self._seen.get(made.node)
        return seen.beat - made.beat if seen else KEPT_BEATS + 1


def correction(placements: Iterable[tuple[Placement, int]]) -> placement.Placed:
    """Return what the placements, each with its age in beats, add to the node's published load."""
    sessions = activating = 0
    cpus = rss_bytes = 0.0
    for made, age in placements:
        share = math.exp(-age / FADE_BEATS)
        cpus += share * made.request.cpus
        rss_bytes += share * made.request.rss_bytes
        if age < COUNTED_BEATS:
            sessions += 1
            activating += made.activating
    return placement.Placed(
        sessions=sessions, activating=activating, cpus=cpus, rss_bytes=rss_bytes
    )
