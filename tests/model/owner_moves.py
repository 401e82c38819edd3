"""What a process that holds, or held, a session may do next, as `torpor.actors` has it."""

from typing import Any

import ownership_model
import store_calls as calls
from explorer import Move
from ownership_model import NAMES, OFF, Moves, Owner, Scope, State
from script_store import Answer, ScriptStore


class Owners:
    """The moves of the processes that hold, or held, the session."""

    def __init__(self, store: ScriptStore, scope: Scope) -> None:
        self._store = store
        self._scope = scope

    def moves(self, state: State) -> Moves:
        """Yield what any of them may do."""
        for slot, owner in enumerate(state.owners):
            if owner.phase == "off":
                yield from self._claim(state, slot)
                continue
            if state.crashes < self._scope.crashes:
                yield _move(f"{NAMES[slot]} dies", state, slot, OFF, crashes=state.crashes + 1)
            match owner.phase:
                case "idle" if owner.queue is not None:
                    yield from self._empty_inbox(state, slot, owner)
                case "idle":
                    yield from self._idle(state, slot, owner)
                case "writing":
                    yield from self._commit(state, slot, owner)
                case "behind" | "before":
                    yield from self._find_out(state, slot, owner)
                case "unsure":
                    yield from self._resolve(state, slot, owner)
                case "spoilt":
                    answer = self._ask(state, calls.vacate, owner.epoch, NAMES[slot], False)
                    yield _move(f"{NAMES[slot]} abandons", state, slot, OFF, answer)

    def _ask(self, state: State, call: object, *arguments: object) -> Answer:
        return self._store.run(state.store, call, *arguments)  # type: ignore[arg-type]

    def _claim(self, state: State, slot: int) -> Moves:
        """Claim on every head that anybody can have looked at, however long ago."""
        if state.claims == self._scope.claims:
            return
        if slot and not state.claims:
            # The slots are alike: whoever is first is called A.
            return
        who, nonce = NAMES[slot], f"{NAMES[slot]}{state.claims + 1}"
        newest = calls.view(self._store.contents[state.store]).epoch
        for epoch in range(self._scope.claims if state.rollbacks else newest + 1):
            for incarnation in ("", *NAMES):
                answer = self._ask(state, calls.acquire, epoch, incarnation, nonce, who)
                if answer.refused:
                    continue
                owner = _owner(answer.value, epoch + 1, nonce)
                label = f"{who} claims on epoch {epoch} of '{incarnation}': nonce {nonce}"
                yield _move(label, state, slot, owner, answer, claims=state.claims + 1)

    def _idle(self, state: State, slot: int, owner: Owner) -> Moves:
        who = NAMES[slot]
        for request in self._scope.direct:
            seq = dict(owner.known).get(request)
            if seq:
                if request not in state.answered:
                    yield _move(f"{who} answers {request} again", state, slot, owner, done=request)
            elif seq is None and not owner.paused:
                yield from self._commit(state, slot, _ran(owner, request, takes=False))
        inbox = calls.view(self._store.contents[state.store]).inbox
        yield _move(f"{who} reads the inbox: {inbox}", state, slot, owner._replace(queue=inbox))
        yield from self._set_paused(state, slot, owner)
        yield from self._release(state, slot, owner)
        if state.seals < self._scope.seals:
            yield from self._seal(state, slot, owner)

    def _empty_inbox(self, state: State, slot: int, owner: Owner) -> Moves:
        """One item after the other, of what was there; then clear the hint, in two steps."""
        who = NAMES[slot]
        if owner.score is not None:
            answer = self._ask(state, calls.unhint, owner.score)
            after = owner._replace(queue=None, score=None)
            yield _move(f"{who} clears the hint", state, slot, after, answer)
        elif owner.paused:
            yield _move(f"{who} lets it wait", state, slot, owner._replace(queue=None))
        elif owner.queue:
            request, *rest = owner.queue
            ran = _ran(owner, request, takes=True)._replace(queue=tuple(rest))
            yield from self._commit(state, slot, ran)
        else:
            answer = self._ask(state, calls.look)
            after = owner._replace(score=answer.value)
            if answer.value is None:
                after = owner._replace(queue=None)
            yield _move(f"{who} looks at the hint: {answer.value}", state, slot, after)

    def _set_paused(self, state: State, slot: int, owner: Owner) -> Moves:
        """Write the status that a gateway is asking for."""
        step = state.control[0]
        asked = step % 2 == 0 and step < 2 * len(self._scope.control)
        verb = self._scope.control[step // 2] if asked else ""
        if verb and owner.paused != (verb == "pause"):
            after = _writing(owner, "paused" if verb == "pause" else "idle")
            yield from self._commit(state, slot, after)

    def _commit(self, state: State, slot: int, owner: Owner) -> Moves:
        """Send what is to be written. What it is was settled before: only the store can change."""
        write = owner.write
        assert write is not None
        who, what = NAMES[slot], f"{write.kind} {write.request}".strip()
        answer = self._ask(state, calls.commit, write)
        if answer.refused:
            after = self._refused(state, owner, answer)
            yield _move(f"{who} commits {what}: {answer.value}", state, slot, after, answer)
        else:
            done = write.request if write.request in self._scope.direct else ""
            label = f"{who} commits {what}: version {write.version + 1}"
            yield _move(label, state, slot, _mirrored(owner, write), answer, done=done)
        if state.lost < self._scope.lost:
            unsure, lost = owner._replace(phase="unsure"), state.lost + 1
            label = f"{who} commits {what}, and the answer is lost"
            yield _move(label, state, slot, unsure, answer, lost=lost)
            if state.flight is None:
                label = f"{who} sends commit {what}, and it is late"
                yield _move(label, state, slot, unsure, lost=lost, flight=write)

    def _refused(self, state: State, owner: Owner, answer: Answer) -> Owner:
        """Return what becomes of an owner whom the store refuses a write."""
        if answer.value == "SessionDeleted" or (owner.write and owner.write.kind == "lost"):
            return OFF
        if state.rollbacks:
            return owner._replace(phase="behind", write=None)
        return owner._replace(phase="spoilt", write=None)

    def _find_out(self, state: State, slot: int, owner: Owner) -> Moves:
        """Look at what the store has; if that is less, write what is lost into the history."""
        who, held = NAMES[slot], calls.view(self._store.contents[state.store])
        if owner.phase == "behind":
            if held.deleted or held.version >= owner.version:
                after, label = owner._replace(phase="spoilt"), "the store is not behind"
            elif not held.incarnation:
                after = owner._replace(phase="before", epoch=held.epoch)
                label = "the store is from before its claim"
            elif held.nonce == owner.nonce:
                after, label = _reporting(owner, held), "the store went back"
            else:
                after, label = owner._replace(phase="spoilt"), "the store went back, to another's"
            yield _move(f"{who} looks: {label}", state, slot, after)
        elif state.claims < self._scope.claims:
            nonce = f"{who}{state.claims + 1}"
            answer = self._ask(state, calls.acquire, owner.epoch, "", nonce, who)
            after = owner._replace(phase="spoilt")
            if not answer.refused:
                taken = owner._replace(epoch=owner.epoch + 1, nonce=nonce)
                after = _reporting(taken, answer.value)
            label = f"{who} claims, to report: {answer.value if answer.refused else nonce}"
            claims = state.claims + (not answer.refused)
            yield _move(label, state, slot, after, answer, claims=claims)

    def _resolve(self, state: State, slot: int, owner: Owner) -> Moves:
        """Claim again with a fresh nonce, then read what became of the commit."""
        write, who = owner.write, NAMES[slot]
        assert write is not None
        if state.claims == self._scope.claims:
            return
        nonce = f"{who}{state.claims + 1}"
        answer = self._ask(state, calls.acquire, owner.epoch, who, nonce, who)
        if answer.refused:
            yield _move(f"{who} claims again: {answer.value}", state, slot, OFF, answer)
            return
        landed = answer.value.commit_id == write.commit_id
        if answer.value.version < owner.version:
            taken = owner._replace(epoch=owner.epoch + 1, nonce=nonce)
            label = f"{who} claims again: nonce {nonce}; the store went back"
            after = _reporting(taken, answer.value)
            yield _move(label, state, slot, after, answer, claims=state.claims + 1)
            return
        after = owner._replace(phase="spoilt", epoch=owner.epoch + 1, nonce=nonce, write=None)
        label = f"{who} claims again: nonce {nonce}, its commit {'landed' if landed else 'is void'}"
        next_state = ownership_model.moved(state, slot, after, answer)._replace(
            claims=state.claims + 1
        )
        if not landed:
            yield Move(label, next_state._replace(void=(*state.void, write.commit_id)))
            return
        done = write.request if write.request in self._scope.direct else ""
        yield Move(label, ownership_model.answered(next_state, done))

    def _release(self, state: State, slot: int, owner: Owner) -> Moves:
        who = NAMES[slot]
        answer = self._ask(state, calls.release, owner.epoch, owner.nonce, owner.version)
        if answer.refused:
            after = self._refused(state, owner, answer)
            yield _move(f"{who} leaves: {answer.value}", state, slot, after, answer)
            return
        if not answer.value:
            return
        held = calls.view(self._store.contents[state.store])
        complaint = ""
        if held.memory != owner.memory:
            complaint = "an owner left with turns that the store had lost, and said nothing"
        elif held.inbox and not held.paused:
            complaint = (
                f"an owner left while {held.inbox} waited: who saw it in office relied on it"
            )
        yield _move(f"{who} leaves", state, slot, OFF, answer)._replace(complaint=complaint)
        if state.lost < self._scope.lost:
            label = f"{who} leaves, the answer is lost, and it goes on"
            yield _move(label, state, slot, owner, answer, lost=state.lost + 1)

    def _seal(self, state: State, slot: int, owner: Owner) -> Moves:
        """Seal all but the newest event."""
        held = calls.view(self._store.contents[state.store])
        if owner.next_seq - 1 <= held.hot_from:
            return
        answer = self._ask(
            state, calls.seal, owner.epoch, owner.nonce, held.hot_from, owner.next_seq - 1
        )
        after = OFF if answer.value in ("Fenced", "SessionDeleted") else owner
        label = f"{NAMES[slot]} seals: {answer.value}"
        yield _move(label, state, slot, after, answer, seals=state.seals + 1)


def _owner(grasp: calls.Grasp, epoch: int, nonce: str) -> Owner:
    return Owner(
        phase="idle",
        epoch=epoch,
        nonce=nonce,
        version=grasp.version,
        next_seq=grasp.next_seq,
        paused=grasp.paused,
        memory=grasp.memory,
        known=grasp.known,
    )


def _ran(owner: Owner, request: str, *, takes: bool) -> Owner:
    """Return the owner with a turn that is done and not committed; known ones only leave."""
    seq = dict(owner.known).get(request, 0)
    return _writing(
        owner,
        "tidy" if seq else "turn",
        request=request,
        answer_seq=seq,
        memory=owner.memory if seq else (*owner.memory, request),
        takes=takes,
    )


def _reporting(owner: Owner, held: calls.View | calls.Grasp) -> Owner:
    """Return the owner about to write into what the store has that it knows more."""
    there = owner._replace(version=held.version, next_seq=held.next_seq)
    return owner._replace(phase="writing", write=_writing(there, "lost").write)


def _writing(owner: Owner, kind: str, **what: Any) -> Owner:
    write = calls.Write(
        kind=kind,
        epoch=owner.epoch,
        nonce=owner.nonce,
        version=owner.version,
        seq=owner.next_seq,
        commit_id=f"{owner.nonce}.{owner.version + 1}",
        **what,
    )
    return owner._replace(phase="writing", write=write)


def _mirrored(owner: Owner, write: calls.Write) -> Owner:
    if write.kind == "lost":
        return owner._replace(phase="spoilt", write=None)
    known = dict(owner.known)
    if write.kind == "turn":
        known[write.request] = write.seq
    return owner._replace(
        phase="idle",
        version=owner.version + 1,
        next_seq=owner.next_seq + (write.kind != "tidy"),
        memory=write.memory if write.kind in ("turn", "tidy") else owner.memory,
        paused=write.kind == "paused" or (owner.paused and write.kind != "idle"),
        known=tuple(sorted(known.items())),
        write=None,
    )


def _move(
    label: str,
    state: State,
    slot: int,
    owner: Owner,
    answer: Answer | None = None,
    *,
    done: str = "",
    **spent: Any,
) -> Move[State]:
    return Move(
        label,
        ownership_model.answered(
            ownership_model.moved(state, slot, owner, answer)._replace(**spent), done
        ),
    )
