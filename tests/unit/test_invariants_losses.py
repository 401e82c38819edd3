"""What a run may lose: what is reported, where a fault may lose something, and nothing else."""

from typing import Any

import msgspec
import pytest

from torpor import errors, messages
from torpor.testing import recorded_run, witness
from torpor.testing.recorded_run import KEY, Run
from torpor.testing.recording import Ending, Kind, Reply


@pytest.fixture
def run() -> Run:
    """A run of three appends and a read, over two activations."""
    return recorded_run.sound()


def _back(run: Run, kept: int, lost: int) -> dict[str, Any]:
    count = len(run.events)
    versions = {"from_version": lost, "to_version": kept}
    return {"reason": "store_went_back", **versions, "lost": {"events": [count + 1, count + 2]}}


def test_reported_loss_is_excused(run: Run) -> None:
    """What is reported lost may be missing, and new turns take its place."""
    kept, lost = run.go_back(2)
    at_s = run.now_s - 5
    run.claim()
    run.event(messages.SESSION_RECOVERED, **_back(run, kept, lost))
    run.turn("d")
    assert run.found(lossy={KEY: at_s}) == set()
    assert {"I8", "I2"} <= run.found()


def test_loss_that_another_owner_reports(run: Run) -> None:
    """It comes after turns that took the numbers of the lost ones, and takes nothing back."""
    kept, lost = run.go_back(2)
    at_s = run.now_s - 5
    run.claim()
    run.turn("d")
    run.event(messages.SESSION_RECOVERED, **_back(run, kept, lost))
    run.turn("e")
    assert run.found(lossy={KEY: at_s}) == set()


def test_loss_that_a_client_was_told(run: Run) -> None:
    """A client that asked for a version and was told that it is lost knows as much."""
    kept, lost = run.go_back(2)
    told = run.told(
        Kind.READ,
        ending=Ending.UNKNOWN,
        reason=errors.VersionsLost.reason,
        min_version=lost,
        reply=Reply(version=kept),
    )
    assert run.found(lossy={KEY: told.begun_s}) == set()


def test_what_others_have_written_over(run: Run) -> None:
    """Who is told of a loss cannot know since when: what is there may be others' by now."""
    kept, lost = run.go_back(2)
    told = run.told(
        Kind.READ,
        ending=Ending.UNKNOWN,
        reason=errors.VersionsLost.reason,
        min_version=lost,
        reply=Reply(version=kept + 1),
    )
    assert run.found(lossy={KEY: told.begun_s}) == set()


def test_loss_excuses_what_it_names_only(run: Run) -> None:
    """A version before those that the report names must be there."""
    kept, lost = run.go_back(3)
    at_s = run.now_s - 5
    run.claim()
    run.event(messages.SESSION_RECOVERED, **_back(run, kept + 1, lost))
    assert "I2" in run.found(lossy={KEY: at_s})


def test_later_turn_of_a_lost_version(run: Run) -> None:
    """A version's number comes again after a loss; that it was lost once excuses no other loss."""
    kept, lost = run.go_back(2)
    at_s = run.now_s - 5
    run.event(messages.SESSION_RECOVERED, **_back(run, kept, lost))
    turn = run.turn("d")
    assert turn.reply is not None
    assert turn.reply.version == lost
    assert run.found(lossy={KEY: at_s}) == set()
    run.go_back(1)
    assert run.found(lossy={KEY: at_s}) == {"I2"}


def test_look_at_what_was_lost(run: Run) -> None:
    """Looks of before a loss are no proof about events that have the same numbers now."""
    look = run.told(Kind.GET, reply=Reply(seq=len(run.events), version=run.version))
    assert look.ended_s is not None
    kept, lost = run.go_back(2)
    at_s = run.now_s - 5
    run.event(messages.SESSION_RECOVERED, **_back(run, kept, lost))
    run.turn("d")
    run.turn("e")
    assert run.found(lossy={KEY: at_s}) == set()


def test_unreported_loss(run: Run) -> None:
    """A loss that nobody was told of is none that may be."""
    run.go_back(2)
    assert run.found(lossy={KEY: run.now_s - 5}) == {"I2"}


def test_second_writer_after_a_loss(run: Run) -> None:
    """Also where things may be lost, two processes never write to one store."""
    at_s = run.now_s + 1
    run.now_s += 2
    run.claim()
    run.turn("d")
    zombie = msgspec.structs.replace(run.records[-1], epoch=2, nonce="nonce-2", pid=1002, version=9)
    assert run.found(lossy={KEY: at_s}) == set()
    run.records.append(zombie)
    assert run.found(lossy={KEY: at_s}) == {"I1"}


def test_zombie_before_a_loss(run: Run) -> None:
    """What went wrong in the former store is not excused by its loss."""
    zombie = {"epoch": 1, "nonce": "nonce-1", "pid": 1001, "version": 9}
    run.records.append(msgspec.structs.replace(run.records[-1], **zombie))
    run.now_s += 1
    assert run.found(lossy={KEY: run.now_s}) == {"I1"}


def test_commit_between_two_stores(run: Run) -> None:
    """What was sent to the former store and answered late is no second writer to the later one."""
    sent, answered = run.records[-2:]
    at_s = run.now_s + 1
    lost = {"commit_id": "between", "version": 6}
    late = [msgspec.structs.replace(sent, **lost)]
    late.append(msgspec.structs.replace(answered, at_s=at_s + 5, **lost))
    run.now_s += 2
    run.turn("d")
    run.records += late
    assert run.found() == {"I1"}
    assert run.found(lossy={KEY: at_s}) == set()


def test_inbox_and_tombstone_may_be_lost(run: Run) -> None:
    """No version names what waits in an inbox, or that a session was deleted."""
    run.told(Kind.ACCEPT, "later", request_id="posted")
    run.told(Kind.DELETE)
    newest = Reply(seq=len(run.events), version=run.version)
    run.told(Kind.GET, begun_s=20.0, ended_s=21.0, reply=newest)
    assert run.found() == {"I2", "I8"}
    assert run.found(lossy={KEY: 10.0}) == set()


def _recovered(run: Run, files: list[str]) -> None:
    lost = {"versions": [3, run.version], "state": True}
    run.event(
        messages.SESSION_RECOVERED,
        from_version=run.version,
        to_version=2,
        lost=lost | {"files": files, "files_total": len(files)},
    )
    run.held = ["a"]


def test_recovery_from_damage(run: Run) -> None:
    """After a recovery state and files are of the version that it names, of no other."""
    _recovered(run, [])
    run.turn("d")
    assert run.found(damaged=[KEY]) == set()
    run.held = ["a", "b"]
    run.turn("e")
    assert run.found(damaged=[KEY]) == {"I8"}


@pytest.mark.parametrize(
    ("files", "found"), [([], {"I8"}), (["tokens"], set()), (["./"], set()), (["other"], {"I8"})]
)
def test_recovery_without_the_file(run: Run, files: list[str], found: set[str]) -> None:
    """A file that a recovery could not bring back begins anew; any other is what it was."""
    _recovered(run, files)
    run.turn("d")
    anew = {"file_n": 1, "file_chain": witness.chain_of(["d"])}
    run.change(len(run.events), data=run.events[-1].data["data"] | anew)
    run.operations.pop()
    run.told(Kind.ACCEPT, "d", request_id="request-4")
    assert run.found(damaged=[KEY]) == found
