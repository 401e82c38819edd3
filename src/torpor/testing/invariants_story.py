"""A session's history as it was read back, and what it says the agent must hold."""

import bisect
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from torpor import messages
from torpor.testing import recording, witness
from torpor.testing.violations import Invariant, Loss, Say


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens, and the digest of them."""

    n: int = 0
    chain: str = witness.NO_CHAIN


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the history holds as the answer to a request."""

    seq: int
    version: int
    #: Of an `agent.message` its data, of an `agent.error` None.
    data: Mapping[str, Any] | None


class Story:
    """Events from 1 on, taken in piece by piece; says what cannot be, whoever asks."""

    def __init__(self, key: str, sent: Mapping[str, recording.Sent], say: Say) -> None:
        self._key = key
        self._sent = sent
        self._say = say
        #: As they were read; event `seq` is at `seq - 1`.
        self.events: list[recording.Seen] = []
        #: token → its place among the tokens, from 1.
        self.positions: dict[str, int] = {}
        self.answers: dict[str, Answer] = {}
        #: What the history itself says was lost.
        self.losses: list[Loss] = []
        #: All versions that have an event.
        self.versions: set[int] = set()
        # By place among the tokens, from 0: which event it is, and the digest up to it.
        self._seqs = [0]
        self._chains = [witness.NO_CHAIN]
        # What the agent holds since a version; a recovery may take it back.
        self._held_since = [0]
        self._held = [Held()]

    @property
    def last_seq(self) -> int:
        """Of the newest event."""
        return len(self.events)

    @property
    def version(self) -> int:
        """Of the newest event."""
        return self.events[-1].version if self.events else 0

    def extend(self, events: Iterable[messages.Event]) -> list[str]:
        """Take in what follows; returns the tokens among it. What is known already is compared."""
        added = []
        for event in events:
            seen = recording.seen(event, token_type=witness.TOKEN)
            if event.seq <= self.last_seq:
                if self.events[event.seq - 1] != seen:
                    self._say(
                        Invariant.COMMITTED, f"event {event.seq} is another than when first read"
                    )
                continue
            if event.seq != self.last_seq + 1:
                self._say(
                    Invariant.FENCE, f"event {event.seq} follows event {self.last_seq}: a gap"
                )
                break
            if event.version < self.version:
                self._say(
                    Invariant.FENCE,
                    f"event {event.seq} is of version {event.version}, the one before it of "
                    f"{self.version}",
                )
            self.events.append(seen)
            self.versions.add(event.version)
            self._take(event)
            if seen.token:
                added.append(seen.token)
        return added

    def said(self, seq: int) -> Held:
        """Return what the history holds up to an event."""
        n = self.count(seq)
        return Held(n=n, chain=self._chains[n])

    def held(self, version: int) -> Held:
        """Return what state and files must hold at a version."""
        return self._held[bisect.bisect_right(self._held_since, version) - 1]

    def count(self, seq: int) -> int:
        """Return the number of tokens up to an event."""
        return bisect.bisect_right(self._seqs, seq) - 1

    def _take(self, event: messages.Event) -> None:
        match event.type:
            case witness.TOKEN:
                self._token(event)
            case messages.AGENT_MESSAGE | messages.AGENT_ERROR:
                self._answer(event)
            case messages.SESSION_RECOVERED:
                self._recovered(event)

    def _token(self, event: messages.Event) -> None:
        token, where = str(event.data["token"]), f"event {event.seq} holds token"
        sent = self._sent.get(token)
        if sent is None:
            self._say(Invariant.ONCE, f"{where} {token}, which nobody sent")
        elif sent.key.partition("/")[0] != self._key.partition("/")[0]:
            self._say(Invariant.TENANTS, f"{where} {token}, which {sent.key} sent")
        elif sent.key != self._key:
            self._say(Invariant.ONCE, f"{where} {token}, which was sent to {sent.key}")
        n, chain = len(self._chains), witness.link(self._chains[-1], token)
        if self.positions.setdefault(token, n) != n:
            self._say(
                Invariant.ONCE, f"{where} {token} again: it is number {self.positions[token]}"
            )
        if (event.data["n"], event.data["chain"]) != (n, chain):
            self._say(
                Invariant.ONE_VERSION,
                f"{where} {token} as number {event.data['n']}, but it is number {n}, or the agent "
                "read another history",
            )
        self._seqs.append(event.seq)
        self._chains.append(chain)
        before = self._held[-1]
        self._holds(event.version, Held(n=before.n + 1, chain=witness.link(before.chain, token)))

    def _answer(self, event: messages.Event) -> None:
        request_id = str(event.data["request_id"])
        data = event.data.get("data", {}) if event.type == messages.AGENT_MESSAGE else None
        answer = Answer(seq=event.seq, version=event.version, data=data)
        first = self.answers.setdefault(request_id, answer)
        if first is not answer:
            self._say(
                Invariant.ONCE,
                f"request {request_id} was handled twice: events {first.seq} and {event.seq}",
            )

    def _recovered(self, event: messages.Event) -> None:
        kept = int(event.data["to_version"])
        if event.data.get("lost", {}).get("events"):
            lost = int(event.data["from_version"])
            self.losses.append(Loss(kept_version=kept, lost_version=lost))
        # The agent goes on with what it held then, whether the history was kept or went back, too.
        self._holds(event.version, self.held(kept))

    def _holds(self, version: int, held: Held) -> None:
        self._held_since.append(version)
        self._held.append(held)
