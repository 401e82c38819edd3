"""The model as the explorer takes it: what may happen within a scope, and what must always hold."""

from collections.abc import Iterator

import store_calls as calls
from explorer import Move
from gateway_moves import Gateways
from owner_moves import Owners
from ownership_model import NAMES, OFF, Scope, State
from script_store import ScriptStore


class Protocol:
    """`explorer.Model` of one session."""

    def __init__(
        self,
        store: ScriptStore,
        scope: Scope,
        *,
        owners: type[Owners] = Owners,
        gateways: type[Gateways] = Gateways,
    ) -> None:
        self._store = store
        self._scope = scope
        self._parts = (owners(store, scope), gateways(store, scope))
        self._of_store: dict[int, str] = {}
        self._of_step: dict[tuple[int, int], str] = {}
        self._views: dict[int, calls.View] = {}

    def first(self) -> State:
        """Return the state in which the session was just created."""
        return State(
            store=self._store.run(self._store.empty, calls.create).store,
            owners=(OFF,) * len(NAMES),
            gateways=(0,) * len(self._scope.accepted),
            control=(0, None),
        )

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Yield all moves that change something, with what is wrong with what they did."""
        for part in self._parts:
            for move in part.moves(state):
                if move.state == state and not move.complaint:
                    continue
                yield self._judged(state, move)

    def _judged(self, before: State, move: Move[State]) -> Move[State]:
        after = move.state
        if after.rollbacks != before.rollbacks or after.store == before.store:
            return move
        if self._scope.rollbacks and before.rollbacks < self._scope.rollbacks:
            past = (*before.past, before.store)[-self._scope.window :]
            move = move._replace(state=after._replace(past=past))
        step = (before.store, after.store)
        if step not in self._of_step:
            self._of_step[step] = _step(self._view(before.store), self._view(after.store))
        return move._replace(complaint=move.complaint or self._of_step[step])

    def complaint(self, state: State) -> str:
        """Return which rule the state breaks."""
        if state.store not in self._of_store:
            self._of_store[state.store] = _contents(self._view(state.store))
        return (
            self._of_store[state.store]
            or self._writers(state)
            or _promises(state, self._view(state.store), self._scope)
        )

    def _view(self, store: int) -> calls.View:
        if store not in self._views:
            self._views[store] = calls.view(self._store.contents[store])
        return self._views[store]

    def _writers(self, state: State) -> str:
        """Ask the commit script, of all who think that they may, whom it lets in."""
        held = self._view(state.store)
        named = [
            (name, owner.epoch, owner.nonce)
            for name, owner in zip(NAMES, state.owners, strict=True)
            if owner.phase != "off"
        ]
        may = [
            name
            for name, epoch, nonce in [*named, ("a gateway", held.epoch, "")]
            if self._store.run(state.store, calls.may_write, epoch, nonce).value
        ]
        return f"two may write: {' and '.join(may)}" if len(may) > 1 else ""


def _contents(held: calls.View) -> str:
    """Return what is wrong with the store: state, history and counters are of one version."""
    if held.deleted:
        return "something is left after the deletion" if held.inbox or held.turns else ""
    requests = tuple(turn[0] for turn in held.turns)
    if len(set(requests)) < len(requests):
        return f"a request is in the history twice: {requests}"
    if held.memory != requests:
        return f"the state holds {held.memory}, the history {requests}"
    for upto, (_, _, memory, _) in enumerate(held.turns, 1):
        if memory != requests[:upto]:
            return f"a turn was made on {memory[:-1]}, before it came {requests[: upto - 1]}"
    if held.seqs != tuple(range(held.hot_from, held.next_seq)):
        return f"hot holds {held.seqs}, and should {held.hot_from} to {held.next_seq - 1}"
    grown = sorted({*held.versions, held.version})
    if grown[-1] > held.version or list(held.versions) != grown[: len(held.versions)]:
        return f"the events are of versions {held.versions}, the head of {held.version}"
    return ""


def _step(before: calls.View, after: calls.View) -> str:
    """Return what is wrong with a step of the store."""
    if after.epoch not in (before.epoch, before.epoch + 1):
        return f"the epoch went from {before.epoch} to {after.epoch}"
    if before.deleted:
        return "" if after.deleted else "a deleted session is back"
    if after.deleted:
        return "" if after.epoch > before.epoch else "a tombstone without a higher epoch"
    if after.epoch == before.epoch and after.nonce not in (before.nonce, ""):
        return f"epoch {after.epoch} has the nonces '{before.nonce}' and '{after.nonce}'"
    if after.version not in (before.version, before.version + 1):
        return f"the version went from {before.version} to {after.version}"
    if (after.turns != before.turns) and after.turns[:-1] != before.turns:
        return "the history was rewritten"
    return ""


def _promises(state: State, held: calls.View, scope: Scope) -> str:
    """Return which promise to somebody outside is broken."""
    steps = tuple(zip(scope.accepted, state.gateways, strict=True))
    acknowledged = {request for request, step in steps if step == 4}
    refused = {request for request, step in steps if step == -1} - acknowledged
    history = {turn[0] for turn in held.turns}
    there = history.union(held.inbox)
    if not held.deleted and not state.rollbacks:
        if lost := set(state.answered) - history:
            return f"answered and not in the history: {lost}"
        if lost := acknowledged - there:
            return f"acknowledged and neither done nor waiting: {lost}"
        if came := {turn[3] for turn in held.turns}.intersection(state.void):
            return f"called void, and in the history: {came}"
        waiting = acknowledged.intersection(held.inbox) - history
        if waiting and not (held.incarnation or held.hinted):
            return f"nobody will wake for {waiting}"
    others = {request for request, step in steps if step >= 0}.union(scope.direct)
    if (refused - others) & there:
        return f"refused, and there: {(refused - others) & there}"
    return ""
