"""What everybody but the owners may do next: acceptance, sweep, decisions, and the store itself."""

import ownership_model
import store_calls as calls
from explorer import Move
from ownership_model import NAMES, Moves, Scope, State
from script_store import ScriptStore


class Gateways:
    """The moves of everybody else: acceptance, the sweep, decisions, node agents, the store."""

    def __init__(self, store: ScriptStore, scope: Scope) -> None:
        self._store = store
        self._scope = scope

    def moves(self, state: State) -> Moves:
        """Yield what any of them may do."""
        for which, request in enumerate(self._scope.accepted):
            yield from self._accept(state, which, request)
        if self._scope.sweeps:
            yield from self._sweep(state)
        if state.control[0] < 2 * len(self._scope.control):
            yield from self._decide(state)
        if state.vacated < self._scope.vacated:
            yield from self._vacate(state)
        if state.flight is not None:
            answer = self._store.run(state.store, calls.commit, state.flight)
            late = state._replace(store=answer.store, flight=None)
            yield Move(f"the late commit arrives: {answer.value or 'done'}", late)
        held = calls.view(self._store.contents[state.store])
        if self._scope.deletes and not held.deleted:
            answer = self._store.run(state.store, calls.delete)
            yield Move("somebody deletes the session", state._replace(store=answer.store))
        if state.rollbacks < self._scope.rollbacks:
            for back, store in enumerate(reversed(state.past), 1):
                # The old primary's connections are gone, with what was on its way to it.
                gone = state._replace(store=store, flight=None, rollbacks=state.rollbacks + 1)
                yield Move(f"the store goes back by {back}", gone._replace(past=()))

    def _accept(self, state: State, which: int, request: str) -> Moves:
        """Steps: 0 nothing done, 1 hinted, 2 appended, 3 hinted again; then 4 acknowledged.

        -1: refused for good.
        """
        step, label = state.gateways[which], f"gateway {which + 1}"
        if step in (0, 2):
            answer = self._store.run(state.store, calls.ensure, ownership_model.now(state))
            hinted = _at(state, which, step + 1)._replace(store=answer.store, hints=state.hints + 1)
            yield Move(f"{label} hints", hinted)
        elif step == 1:
            answer = self._store.run(state.store, calls.enqueue, request)
            then = -1 if answer.refused else 4 if answer.value else 2
            what = answer.value if answer.refused else "known" if answer.value else "done"
            appended = _at(state, which, then)._replace(store=answer.store)
            yield Move(f"{label} appends {request}: {what}", appended)
        elif step == 3:
            yield Move(f"{label} acknowledges {request}", _at(state, which, 4))

    def _sweep(self, state: State) -> Moves:
        if state.sweeper is not None:
            answer = self._store.run(state.store, calls.unhint, state.sweeper)
            swept = state._replace(store=answer.store, sweeper=None)
            yield Move(f"the sweeper clears the hint with score {state.sweeper!r}", swept)
            return
        answer = self._store.run(state.store, calls.look)
        if answer.value is not None:
            looked = state._replace(sweeper=answer.value)
            yield Move(f"the sweeper looks at the hint: score {answer.value!r}", looked)

    def _decide(self, state: State) -> Moves:
        """Steps of each decision: 0 look, 1 write."""
        step, seen = state.control
        verb = self._scope.control[step // 2]
        held = calls.view(self._store.contents[state.store])
        if step % 2 == 0:
            if held.deleted or held.paused == (verb == "pause"):
                yield Move(f"to {verb}: nothing to write", state._replace(control=(step + 2, None)))
            elif not held.incarnation:
                head = (held.epoch, held.version, held.next_seq)
                yield Move(f"to {verb}: looks", state._replace(control=(step + 1, head)))
        elif seen is not None:
            status = "paused" if verb == "pause" else "idle"
            write = calls.Write(status, seen[0], "", seen[1], seen[2], f"{verb}.{seen[1]}")
            answer = self._store.run(state.store, calls.commit, write)
            then = (step - 1, None) if answer.refused else (step + 1, None)
            written = state._replace(store=answer.store, control=then)
            yield Move(f"to {verb}: writes: {answer.value or 'done'}", written)

    def _vacate(self, state: State) -> Moves:
        """Clear what anybody can have taken for the owner, however long ago."""
        for epoch in range(1, self._scope.claims + 1):
            for incarnation in NAMES:
                answer = self._store.run(state.store, calls.vacate, epoch, incarnation, True)
                if answer.store != state.store:
                    label = f"epoch {epoch} of {incarnation} is cleared"
                    after = state._replace(store=answer.store, vacated=state.vacated + 1)
                    yield Move(label, after)


def _at(state: State, which: int, step: int) -> State:
    steps = state.gateways
    return state._replace(gateways=(*steps[:which], step, *steps[which + 1 :]))
