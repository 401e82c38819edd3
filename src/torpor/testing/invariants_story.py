"""A session's history as it was read back, and what it says the agent must hold."""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from torpor import messages
from torpor.testing import recording, witness
from torpor.testing.violations import Invariant, Loss, Say

#: How a recovery names a workspace of which anything may be lost.
WHOLE_WORKSPACE = "./"


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens, and the digest of them."""

    n: int = 0
    chain: str = witness.NO_CHAIN

    def __str__(self) -> str:
        return f"{self.n} tokens ({self.chain[:8]})"

    def and_one(self, token: str) -> "Held":
        """Return the same with one more token."""
        return Held(n=self.n + 1, chain=witness.link(self.chain, token))


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
        #: By request id: one, or too many.
        self.answers: dict[str, list[Answer]] = {}
        #: What the history itself says was lost.
        self.losses: list[Loss] = []
        #: What it is when state, files and history disagree.
        self.mixed = Invariant.ONE_VERSION
        #: Whether a recovery may be reported at all.
        self.may_lose = False
        #: Versions that a damage took away, as the history says.
        self.damaged: list[int] = []
        #: The newest version that was whole beside each damage.
        self.whole: Sequence[int] = ()
        #: All versions that have an event.
        self.versions: set[int] = set()
        self._seqs: list[int] = []
        self._said = Held()
        # What the agent must hold, and since which version: a recovery may take it back.
        self._held_since = [0]
        self._held = [Held()]
        # What its file may hold: one thing, but several until a recovery that lost it has shown.
        self._files = {Held()}

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

    def count(self, seq: int) -> int:
        """Return the number of tokens up to an event."""
        return bisect.bisect_right(self._seqs, seq)

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
        position, right = len(self._seqs) + 1, self._said.and_one(token)
        if self.positions.setdefault(token, position) != position:
            self._say(
                Invariant.ONCE, f"{where} {token} again: it is number {self.positions[token]}"
            )
        self._said = Held(n=event.data["n"], chain=event.data["chain"])
        if self._said != right:
            self._say(
                self.mixed,
                f"{where} {token} as number {self._said.n}, but it is number {right.n}, or the "
                "agent read another history",
            )
        self._seqs.append(event.seq)
        self._holds(event.version, self._held[-1].and_one(token))
        self._files = {held.and_one(token) for held in self._files}

    def _answer(self, event: messages.Event) -> None:
        request_id = str(event.data["request_id"])
        data = event.data.get("data", {}) if event.type == messages.AGENT_MESSAGE else None
        answer = Answer(seq=event.seq, version=event.version, data=data)
        answers = self.answers.setdefault(request_id, [])
        answers.append(answer)
        if len(answers) > 1:
            self._say(
                Invariant.ONCE,
                f"request {request_id} was handled {len(answers)} times, by events "
                f"{', '.join(str(one.seq) for one in answers)}",
            )
        if data and data.keys() >= witness.PARTS:
            self._agree(event, data)

    def _agree(self, event: messages.Event, data: Mapping[str, Any]) -> None:
        """Compare what a witness found in its three places with what must be there."""
        read = Held(n=data["n"], chain=data["chain"])
        state = Held(n=data["state_n"], chain=data["state_chain"])
        file = Held(n=data["file_n"], chain=data["file_chain"])
        for what, found, right in (
            ("the history that it read", read, {self._said}),
            ("its state", state, {self._held[-1]}),
            ("its file", file, self._files),
        ):
            if found not in right:
                self._say(
                    self.mixed,
                    f"at event {event.seq} of version {event.version} {what} held {found}, and "
                    f"{' or '.join(map(str, right))} is right",
                )
        # It goes on with what it has: one mistake is told once.
        self._held[-1], self._files = state, {file}

    def _recovered(self, event: messages.Event) -> None:
        kept = int(event.data["to_version"])
        if not self.may_lose:
            self._say(
                Invariant.GUARDS, f"event {event.seq} reports a loss, and there is no cause for one"
            )
        lost, newest = event.data["lost"], int(event.data["from_version"])
        if "events" in lost:
            # The history went back, too: what the agent holds is what it says already.
            self.losses.append(
                Loss(kept_version=kept, lost_version=newest, seq=event.seq, at_ms=event.at_ms)
            )
            return
        self.damaged.append(newest)
        # Of damages that came later the next whole version is not older than this event.
        whole = max((version for version in self.whole if version < newest), default=0)
        if kept < whole:
            self._say(
                Invariant.GUARDS,
                f"event {event.seq} goes back to version {kept}, though {whole} was whole",
            )
        held = self._held[bisect.bisect_right(self._held_since, kept) - 1]
        self._holds(event.version, held)
        self._files = {held}
        if {witness.TOKENS_FILE, WHOLE_WORKSPACE} & set(lost.get("files", ())):
            self._files.add(Held())

    def _holds(self, version: int, held: Held) -> None:
        self._held_since.append(version)
        self._held.append(held)
