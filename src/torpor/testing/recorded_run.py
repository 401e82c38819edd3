"""A sound run of one session, made by hand: for tests of what checks runs."""

from collections.abc import Sequence
from typing import Any

import msgspec

from torpor import messages, probes
from torpor.testing import invariants, witness
from torpor.testing.recording import Ending, Kind, Operation, Record, Reply

KEY = "red/s1"


class Run:
    """One second a step; tests change what it recorded."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.events: list[messages.Event] = []
        self.records: list[Record] = []
        self.tokens: list[str] = []
        self.version, self.epoch, self.now_s = 0, 0, 0.0
        self.held: list[str] = []
        self.commit([(messages.SESSION_CREATED, {})])
        self.claim()

    def claim(self) -> None:
        """Let a new process have the session."""
        self.epoch += 1
        self.records.append(self._record(probes.Point.ACQUIRE_AFTER, version=self.version))

    def turn(self, token: str = "", **changed: Any) -> Operation:
        """Append a token, or read; `changed` is of the operation."""
        request_id = f"request-{len(self.operations)}"
        happened: list[tuple[str, dict[str, Any]]] = [(messages.USER_MESSAGE, {})]
        if token:
            self.tokens.append(token)
            self.held.append(token)
            n, chain = len(self.tokens), witness.chain_of(self.tokens)
            happened.append((witness.TOKEN, {"token": token, "n": n, "chain": chain}))
        n, chain = len(self.tokens), witness.chain_of(self.tokens)
        held = witness.chain_of(self.held)
        data: dict[str, Any] = {
            "n": n,
            "chain": chain,
            "state_n": len(self.held),
            "state_chain": held,
        }
        data |= {"file_n": len(self.held), "file_chain": held}
        happened.append((messages.AGENT_MESSAGE, {"request_id": request_id, "data": data}))
        self.commit(happened, request_id)
        reply = Reply(seq=len(self.events), version=self.version, **data)
        kind = Kind.APPEND if token else Kind.READ
        return self.told(kind, token, **{"request_id": request_id, "reply": reply} | changed)

    def told(self, kind: Kind, token: str = "", **fields: Any) -> Operation:
        """Record an operation that lasts from the last step to the next one."""
        times = {"begun_s": self.now_s - 0.5, "ended_s": self.now_s + 0.4}
        plain = {"token": token, "id": len(self.operations) + 1, "tenant": "red", "session": "s1"}
        fields = plain | {"kind": kind, "ending": Ending.OK} | times | fields
        self.operations.append(msgspec.convert(fields, Operation))
        return self.operations[-1]

    def event(self, kind: str, **data: Any) -> None:
        """Commit one event alone."""
        self.commit([(kind, data)])

    def found(self, **more: Any) -> set[str]:
        """Return which invariants are violated."""
        history = invariants.History(
            operations=self.operations, sessions={KEY: self.events}, records=self.records
        )
        return {
            str(one.invariant) for one in invariants.check(msgspec.structs.replace(history, **more))
        }

    def go_back(self, versions: int) -> tuple[int, int]:
        """Lose the newest versions, as a failover does; returns the kept one and the lost one."""
        lost, kept = self.version, self.version - versions
        self.events = [event for event in self.events if event.version <= kept]
        self.tokens = [event.data["token"] for event in self.events if event.type == witness.TOKEN]
        self.held = self.tokens.copy()
        self.version = kept
        self.now_s += 10
        return kept, lost

    def change(self, seq: int, **data: Any) -> None:
        """Change an event's data."""
        event = self.events[seq - 1]
        self.events[seq - 1] = msgspec.structs.replace(event, data={**event.data, **data})

    def commit(self, happened: Sequence[tuple[str, dict[str, Any]]], request_id: str = "") -> None:
        """Commit some events, or none."""
        self.version += 1
        self.now_s += 1
        if self.epoch:
            fields = {"version": self.version, "commit_id": f"commit-{self.version}"}
            fields["requests"] = (request_id,) if request_id else ()
            for point in (probes.Point.COMMIT_BEFORE, probes.Point.COMMIT_AFTER):
                self.records.append(self._record(point, **fields))
        for kind, data in happened:
            seq = len(self.events) + 1
            self.events.append(
                messages.Event(seq=seq, type=kind, data=data, version=self.version, at_ms=0)
            )

    def _record(self, point: probes.Point, **fields: Any) -> Record:
        return Record(
            point=point,
            pid=1000 + self.epoch,
            at_s=self.now_s,
            session=KEY,
            epoch=self.epoch,
            nonce=f"nonce-{self.epoch}",
            **fields,
        )


def sound() -> Run:
    """Return a run of three appends and a read, over two activations."""
    made = Run()
    made.turn("a")
    made.turn("b")
    made.claim()
    made.turn("c")
    made.turn()
    return made
