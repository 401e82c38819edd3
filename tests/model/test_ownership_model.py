"""The ownership protocol, explored: every order of a few moves, over the scripts as they are.

All scopes together come to some 280,000 states and 960,000 transitions, all answers of the store
asked from a real server. Then the same with a protection taken out, to show that it would be found.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import explorer
import gateway_moves
import owner_moves
import ownership_model
import ownership_rules
import pytest
import script_store
import store_calls
from ownership_model import Owner, Scope, State

from torpor.testing import valkey

#: Well above the largest scope: one that grows past it should be looked at.
STATES_MAX = 200_000

SCOPES = {
    # Two owners, the same requests to both, lost and late answers, deaths, takeovers.
    "fencing": Scope(direct=("r1", "r2"), claims=3, lost=1, crashes=1, vacated=1),
    # One message accepted by two gateways, swept and emptied by two owners.
    "accepted twice": Scope(accepted=("r1", "r1"), claims=2, sweeps=True),
    "accepted": Scope(accepted=("r1", "r2"), claims=1, sweeps=True, vacated=1),
    "sent and accepted": Scope(direct=("r1",), accepted=("r1",), claims=2, lost=1, vacated=1),
    "paused": Scope(
        accepted=("r1",), claims=1, sweeps=True, vacated=1, control=("pause", "resume")
    ),
    "sealed": Scope(direct=("r1",), accepted=("r1",), claims=2, seals=1, vacated=1),
    "deleted": Scope(direct=("r1",), accepted=("r2",), claims=2, lost=1, deletes=True),
    # The store fails over to a replica that lacks up to three writes.
    "gone back": Scope(direct=("r1", "r2"), claims=3, rollbacks=1),
    "gone back, answers lost": Scope(direct=("r1",), claims=3, lost=1, vacated=1, rollbacks=1),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[valkey.Server]:
    """A server that keeps nothing: its contents are rewritten with each call."""
    folder = tmp_path_factory.mktemp("model")
    with valkey.Server(folder, settings={"appendonly": "no"}) as started:
        yield started


def _explored(
    server: valkey.Server,
    scope: Scope,
    doctored: Mapping[str, Mapping[str, str]] | None = None,
    **parts: Any,
) -> explorer.Found:
    store = script_store.ScriptStore(server, doctored or {})
    try:
        model = ownership_rules.Protocol(store, scope, **parts)
        return explorer.explore(model, states_max=STATES_MAX)
    finally:
        store.close()


@pytest.mark.parametrize("name", SCOPES)
def test_rules_hold_in_every_order(server: valkey.Server, name: str) -> None:
    """Whatever order things happen in, within the scope, no rule is broken in any state."""
    found = _explored(server, SCOPES[name])
    print(f"{name}: {found}")  # noqa: T201 - the figure that the run is about
    assert not found.complaint, f"{name}: {found}"
    assert found.states > 1_000


#: What is taken out: script, texts and their replacements; in which scope; what is found then.
DOCTORED = {
    "no nonce in commit": (
        "commit",
        {"or (head[3] or '') ~= ARGV[2]": ""},
        "fencing",
        "two may write: A and a gateway",
    ),
    "no compare-and-set in acquire": (
        "acquire",
        {"not (again or observed)": "false"},
        "fencing",
        "has the nonces",
    ),
    # Each would do alone for a turn: it has a version and an event with a seq.
    "no version and no seq in commit": (
        "commit",
        {"head[5] ~= ARGV[3]": "false", "events > 0 and head[6] ~= ARGV[5]": "false"},
        "gone back",
        "the state holds ('r1', 'r2'), the history ('r2',)",
    ),
    "no version in release": (
        "release",
        {"head[5] ~= ARGV[3]": "false"},
        "gone back",
        "an owner left with turns that the store had lost",
    ),
    "no look into the inbox in release": (
        "release",
        {"redis.call('LLEN', KEYS[2]) > 0": "false"},
        "accepted",
        "an owner left while ('r1',) waited",
    ),
    "no score in unhint": (
        "unhint",
        {"redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2]": "false"},
        "accepted",
        "nobody will wake for {'r1'}",
    ),
    "nothing is known in enqueue": (
        "enqueue",
        {"if known then": "if false then"},
        "accepted twice",
        "a request is in the history twice",
    ),
    "all of the inbox goes in commit": (
        "commit",
        {"redis.call('LTRIM', KEYS[3], consumed, -1)": "redis.call('DEL', KEYS[3])"},
        "accepted",
        "acknowledged and neither done nor waiting",
    ),
    "no tombstone in enqueue": (
        "enqueue",
        {"if head[1] then": "if false then"},
        "deleted",
        "something is left after the deletion",
    ),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_missing_protection_is_found(server: valkey.Server, name: str) -> None:
    """With one protection taken out of one script, a shortest way to the damage is printed."""
    script, edits, scope, expected = DOCTORED[name]
    found = _explored(server, SCOPES[scope], {script: edits})
    print(f"{name}: {found}")  # noqa: T201 - for the reader of a trace
    assert expected in found.complaint


class CarelessOwners(owner_moves.Owners):
    """They read what became of a commit without claiming the session anew first."""

    def _resolve(self, state: State, slot: int, owner: Owner) -> Iterator[explorer.Move[State]]:
        held = store_calls.view(self._store.contents[state.store])
        write = owner.write
        assert write is not None
        if held.commit_id != write.commit_id:
            owners = (*state.owners[:slot], ownership_model.OFF, *state.owners[slot + 1 :])
            void = state._replace(owners=owners, void=(*state.void, write.commit_id))
            yield explorer.Move("reads that its commit did not land", void)


class CarelessGateways(gateway_moves.Gateways):
    """They acknowledge once the message is appended, without hinting again."""

    def _accept(self, state: State, which: int, request: str) -> Iterator[explorer.Move[State]]:
        for move in super()._accept(state, which, request):
            done = tuple(4 if step == 2 else step for step in move.state.gateways)
            yield move._replace(state=move.state._replace(gateways=done))


@pytest.mark.parametrize(
    ("parts", "scope", "expected"),
    [
        ({"owners": CarelessOwners}, "fencing", "called void, and in the history"),
        ({"gateways": CarelessGateways}, "accepted", "nobody will wake for {'r1'}"),
    ],
)
def test_missing_step_is_found(
    server: valkey.Server, parts: dict[str, Any], scope: str, expected: str
) -> None:
    """A process that leaves out one step of the protocol is found as well."""
    found = _explored(server, SCOPES[scope], **parts)
    print(found)  # noqa: T201 - for the reader of a trace
    assert expected in found.complaint
