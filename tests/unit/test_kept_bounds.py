"""What a node keeps of sessions that left: bounds, when it is looked at, how it ends."""

import os
import pathlib
import time
from collections.abc import Callable

import pytest

from torpor.storage import (
    kept_description,
    kept_workspaces,
    local_blobs,
    records,
    snapshot,
    workspace_scan,
    workspace_tree,
    workspace_watch,
)
from torpor.testing import clock, workspaces

KEY = records.SessionKey("acme", "one")
NOW_MS = clock.FakeClock().now_ms()


@pytest.fixture
def store(tmp_path: pathlib.Path) -> workspaces.RecordingBlobs:
    """Return a store that takes note of what is read."""
    return workspaces.RecordingBlobs(local_blobs.LocalBlobStore(tmp_path / "storage"))


@pytest.fixture
def time_source() -> clock.FakeClock:
    """Return the node's clock."""
    return clock.FakeClock()


@pytest.fixture
def kept(tmp_path: pathlib.Path, time_source: clock.FakeClock) -> kept_workspaces.KeptWorkspaces:
    """Return a node's kept workspaces, none so far."""
    return kept_workspaces.KeptWorkspaces(tmp_path / "kept", time_source)


@pytest.fixture(autouse=True)
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all files be old enough to be told from changed ones."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 1_000_000_000)


def _slot(tmp_path: pathlib.Path, name: str) -> pathlib.Path:
    slot = tmp_path / "slots" / name
    slot.mkdir(parents=True)
    return slot


def _leave(
    slot: pathlib.Path,
    store: workspaces.RecordingBlobs,
    *,
    key: records.SessionKey = KEY,
    at_ms: int = NOW_MS,
) -> snapshot.Snapshot:
    return workspaces.leave(slot, store, key, at_ms=at_ms)


def test_the_least_recently_used_go_first(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond the bound the oldest is given up, and its disk is freed by `trim`, not before."""
    keys = [records.SessionKey("acme", f"s{number}") for number in range(3)]
    for key in (*keys, keys[0]):
        slot = _slot(tmp_path, f"{key.session}-{os.urandom(2).hex()}")
        _leave(slot, store, key=key)
        kept.keep(slot, key)
    monkeypatch.setattr(kept_workspaces, "SESSIONS_MAX", 2)
    kept.trim()
    assert not kept.take(keys[1], _slot(tmp_path, "a"))
    assert kept.take(keys[2], _slot(tmp_path, "b"))
    assert kept.take(keys[0], _slot(tmp_path, "c"))
    assert list((tmp_path / "kept" / ".trash").iterdir()) == []


def test_the_disk_is_shared(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kept workspaces together take a share of the disk and no more."""
    slot = _slot(tmp_path, "old")
    _leave(slot, store)
    kept.keep(slot, KEY)
    kept.trim()
    assert (tmp_path / "kept" / "acme" / "one").exists()
    monkeypatch.setattr(kept_workspaces, "DISK_SHARE", 0.0)
    kept.trim()
    assert not (tmp_path / "kept" / "acme" / "one").exists()


def test_what_nobody_used_for_a_day_goes(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    time_source: clock.FakeClock,
) -> None:
    """So that of a deleted session nothing stays."""
    slot = _slot(tmp_path, "old")
    _leave(slot, store, at_ms=time_source.now_ms() - kept_workspaces.KEPT_MS)
    kept.keep(slot, KEY)
    kept.trim()
    assert not kept.take(KEY, _slot(tmp_path, "new"))


def test_what_came_back_unused_is_no_younger(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    time_source: clock.FakeClock,
) -> None:
    """It goes when its day is over, also if one that was kept before it stays."""
    other = records.SessionKey("acme", "two")
    for key, age_ms in ((other, 0), (KEY, kept_workspaces.KEPT_MS)):
        slot = _slot(tmp_path, key.session)
        _leave(slot, store, key=key, at_ms=time_source.now_ms() - age_ms)
        kept.keep(slot, key)
    kept.trim()
    assert not kept.take(KEY, _slot(tmp_path, "a"))
    assert kept.take(other, _slot(tmp_path, "b"))


def test_a_disk_that_refuses_keeps_nothing_and_harms_nobody(
    store: workspaces.RecordingBlobs, tmp_path: pathlib.Path, time_source: clock.FakeClock
) -> None:
    """The node goes on with what comes after a death, whatever its disk says."""
    slot = _slot(tmp_path, "old")
    _leave(slot, store)
    (tmp_path / "kept").write_text("no folder")
    kept = kept_workspaces.KeptWorkspaces(tmp_path / "kept", time_source)
    assert not kept.keep(slot, KEY)
    kept.trim()


def test_a_new_life_takes_stock(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    time_source: clock.FakeClock,
) -> None:
    """A node agent that starts anew finds what is whole, and removes the rest."""
    torn = records.SessionKey("acme", "torn")
    for key in (KEY, torn):
        slot = _slot(tmp_path, key.session)
        _leave(slot, store, key=key)
        kept.keep(slot, key)
    (tmp_path / "kept" / "acme" / "torn" / kept_description.NAME).unlink()
    again = kept_workspaces.KeptWorkspaces(tmp_path / "kept", time_source)
    again.clean_leftovers()
    assert not (tmp_path / "kept" / "acme" / "torn").exists()
    assert not again.take(torn, _slot(tmp_path, "other"))
    assert again.take(KEY, _slot(tmp_path, "new"))


def test_a_keeping_that_fails_halfway_keeps_nothing(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    time_source: clock.FakeClock,
) -> None:
    """The description moves last: a workspace alone is removed by the next start."""
    old = _slot(tmp_path, "old")
    _leave(old, store)
    place = tmp_path / "kept" / "acme" / "one"
    place.mkdir(parents=True)
    (old / kept_workspaces.WORKSPACE).rename(place / kept_workspaces.WORKSPACE)
    again = kept_workspaces.KeptWorkspaces(tmp_path / "kept", time_source)
    again.clean_leftovers()
    assert not place.exists()
    assert not again.keep(old, KEY)


def test_what_is_forgotten_is_gone(
    kept: kept_workspaces.KeptWorkspaces, store: workspaces.RecordingBlobs, tmp_path: pathlib.Path
) -> None:
    """Of a deleted session the node keeps nothing."""
    old = _slot(tmp_path, "old")
    _leave(old, store)
    kept.keep(old, KEY)
    kept.forget(KEY)
    kept.trim()
    assert not kept.take(KEY, _slot(tmp_path, "new"))
    assert list((tmp_path / "kept").glob("*/*")) == []


def test_too_many_files_are_not_described(
    store: workspaces.RecordingBlobs, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A description stays small enough to be written and read at once."""
    slot = _slot(tmp_path, "old")
    tree = _leave(slot, store).tree
    (slot / kept_description.NAME).unlink()
    monkeypatch.setattr(kept_description, "ENTRIES_MAX", 3)
    assert not kept_description.write(slot, KEY, tree, at_ms=0, since_ticks=0)
    assert kept_description.head(slot) is None


def _at_each_look(monkeypatch: pytest.MonkeyPatch, act: Callable[[pathlib.Path], object]) -> None:
    """Let every workspace be a large one, and something happen before a look at it tells."""
    run = workspace_scan.Scan.run

    def look(
        scan: workspace_scan.Scan, root: pathlib.Path, known: workspace_tree.Folder
    ) -> workspace_tree.Folder | workspace_scan.Draft:
        found = run(scan, root, known)
        act(root)
        return found

    monkeypatch.setattr(workspace_watch, "ENTRIES_MIN", 0)
    monkeypatch.setattr(workspace_scan.Scan, "run", look)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[pathlib.Path]:
    """Let every workspace be a large one; return a list that gets what is looked at."""
    found: list[pathlib.Path] = []
    _at_each_look(monkeypatch, found.append)
    return found


def test_a_large_one_is_looked_at_before_it_is_needed(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    looks: list[pathlib.Path],
) -> None:
    """Its wake finds every file looked at, since its session's process was dead."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    taken = _leave(old, store)
    looks.clear()
    kept.keep(old, KEY)
    kept.look(KEY)
    assert looks == [tmp_path / "kept" / "acme" / "one" / kept_workspaces.WORKSPACE]
    kept.take(KEY, new)
    tree = kept_workspaces.put_back(new, KEY, taken.manifest, store)
    assert tree is not None
    assert tree.digest == taken.manifest
    assert len(looks) == 1


def test_a_large_one_that_changed_is_looked_at_again(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    looks: list[pathlib.Path],
) -> None:
    """What was written after the last commit is found by the look, and put right by the wake."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    taken = _leave(old, store)
    (old / kept_workspaces.WORKSPACE / "run.sh").write_text("changed")
    kept.keep(old, KEY)
    kept.look(KEY)
    kept.take(KEY, new)
    looks.clear()
    assert kept_workspaces.put_back(new, KEY, taken.manifest, store) is not None
    assert looks
    assert (new / kept_workspaces.WORKSPACE / "run.sh").read_text() != "changed"


def test_a_look_that_came_too_late_counts_for_nothing(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A session that wakes while its files are looked at has them looked at again."""
    old, new, last = (_slot(tmp_path, name) for name in ("old", "new", "last"))
    _leave(old, store)
    kept.keep(old, KEY)

    def come_and_go(_: pathlib.Path) -> None:
        kept.take(KEY, new)
        kept.keep(new, KEY)

    _at_each_look(monkeypatch, come_and_go)
    kept.look(KEY)
    assert kept.take(KEY, last)
    assert not (last / kept_workspaces.KEPT / kept_workspaces.LOOKED).exists()


def test_one_with_hard_links_is_looked_at_by_its_wake(
    kept: kept_workspaces.KeptWorkspaces,
    store: workspaces.RecordingBlobs,
    tmp_path: pathlib.Path,
    looks: list[pathlib.Path],
) -> None:
    """By its other name a file may be changed after a look."""
    old, new = _slot(tmp_path, "old"), _slot(tmp_path, "new")
    file = old / kept_workspaces.WORKSPACE / "run.sh"
    file.parent.mkdir()
    file.write_text("stored")
    other = tmp_path / "other name"
    other.hardlink_to(file)
    taken = workspaces.commit(snapshot.Snapshotter(file.parent, store, "acme", 1 << 30))
    kept_description.write(old, KEY, taken.tree, at_ms=NOW_MS, since_ticks=0)
    kept.keep(old, KEY)
    kept.look(KEY)
    other.write_text("changed")
    kept.take(KEY, new)
    assert kept_workspaces.put_back(new, KEY, taken.manifest, store) is not None
    assert (new / kept_workspaces.WORKSPACE / "run.sh").read_text() == "stored"
