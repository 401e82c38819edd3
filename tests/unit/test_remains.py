"""What a leaving process may leave behind: nothing is kept while something could still write."""

import mmap
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from torpor.actors import remains
from torpor.storage import (
    kept_description,
    kept_workspaces,
    local_blobs,
    memory_store,
    records,
    snapshot,
    workspace_tree,
)
from torpor.testing import clock, store_samples

KEY = records.SessionKey("acme", "one")


@pytest.fixture
def slot(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a slot whose workspace has one file."""
    (tmp_path / "slot" / "workspace").mkdir(parents=True)
    (tmp_path / "slot" / "workspace" / "file").write_bytes(bytes(4_096))
    return tmp_path / "slot"


@pytest.fixture
def tree(slot: pathlib.Path, tmp_path: pathlib.Path) -> workspace_tree.Folder:
    """Return what is stored of the slot's workspace."""
    store = local_blobs.LocalBlobStore(tmp_path / "storage")
    return snapshot.Snapshotter(slot / "workspace", store, "acme", 1 << 20).snapshot().tree


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process of the tests have no children, whatever other tests have started."""
    monkeypatch.setattr(remains, "_has_children", lambda: False)


@pytest.fixture
def start(slot: pathlib.Path) -> Iterator[Callable[[str], None]]:
    """Return a function that starts a process which runs a line of Python in the workspace."""
    started: list[subprocess.Popen[str]] = []

    def run(line: str) -> None:
        code = f"import os, sys; {line}; print(flush=True); sys.stdin.read()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=slot / "workspace",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()

    yield run
    for process in started:
        process.communicate()


def _keep(slot: pathlib.Path, tmp_path: pathlib.Path) -> bool:
    kept = kept_workspaces.KeptWorkspaces(tmp_path / "kept", clock.FakeClock())
    return remains.keep(kept, slot, KEY)


@pytest.mark.usefixtures("_alone")
def test_who_leaves_nobody_behind_is_kept(
    slot: pathlib.Path, tree: workspace_tree.Folder, tmp_path: pathlib.Path
) -> None:
    """An orderly end leaves a description, and the node keeps the workspace."""
    assert not _keep(slot, tmp_path)
    assert remains.leave(slot, KEY, tree, workspace_tree.EMPTY, 0)
    assert _keep(slot, tmp_path)


@pytest.mark.usefixtures("_alone")
def test_an_empty_workspace_is_not_kept(slot: pathlib.Path) -> None:
    """A restore of nothing costs nothing."""
    assert not remains.leave(slot, KEY, workspace_tree.EMPTY, workspace_tree.EMPTY, 0)


def test_a_child_that_lives_keeps_the_workspace_from_being_kept(
    slot: pathlib.Path, tree: workspace_tree.Folder, start: Callable[[str], None]
) -> None:
    """A child may write later, wherever it works."""
    start("os.chdir('/')")
    assert not remains.leave(slot, KEY, tree, workspace_tree.EMPTY, 0)
    assert kept_description.head(slot) is None


def test_a_kernel_that_does_not_tell_of_children_keeps_the_workspace_from_being_kept(
    slot: pathlib.Path,
    tree: workspace_tree.Folder,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is known then, and nothing is trusted."""
    monkeypatch.setattr(remains, "_PROC", tmp_path / "proc")
    assert not remains.leave(slot, KEY, tree, workspace_tree.EMPTY, 0)


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("access", [mmap.ACCESS_WRITE, mmap.ACCESS_READ])
def test_a_file_mapped_for_writing_keeps_the_workspace_from_being_kept(
    slot: pathlib.Path, tree: workspace_tree.Folder, access: int
) -> None:
    """What is written through a map may not show in the file's times; reading does no harm."""
    with (
        (slot / "workspace" / "file").open("r+b") as file,
        mmap.mmap(file.fileno(), 0, access=access),
    ):
        assert remains.leave(slot, KEY, tree, workspace_tree.EMPTY, 0) == (
            access == mmap.ACCESS_READ
        )


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("late", [False, True])
def test_what_was_written_through_a_map_after_the_commit_is_found(
    slot: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    """The second write to a page shows in no time of the file, and the map is gone by the end."""
    path, now_ns = slot / "workspace" / "file", time.time_ns
    store = local_blobs.LocalBlobStore(tmp_path / "storage")
    taker = snapshot.Snapshotter(slot / "workspace", store, "acme", 1 << 20)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 1_000_000_000)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = 1
        committed = taker.snapshot().tree
        if late:
            mapped[0] = 2
    assert workspace_tree.stamp_of(path.lstat()) == committed.stamps["file"]
    assert remains.leave(slot, KEY, committed, workspace_tree.EMPTY, 0) == (not late)


@pytest.mark.usefixtures("_alone")
def test_too_much_to_read_leaves_nothing(
    slot: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What an activation wrote is bounded; what was there at its wake costs nothing."""
    now_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 1_000_000_000)
    store = local_blobs.LocalBlobStore(tmp_path / "storage")
    old = snapshot.Snapshotter(slot / "workspace", store, "acme", 1 << 20).snapshot().tree
    monkeypatch.setattr(remains, "CHECKED_BYTES_MAX", 4_095)
    assert not remains.leave(slot, KEY, old, workspace_tree.EMPTY, 0)
    assert remains.leave(slot, KEY, old, old, 0)


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(
    "line",
    [
        "pass",
        "file = open('file', 'r+'); os.chdir('/')",
        "folder = os.open('.', os.O_RDONLY); os.chdir('/')",
    ],
)
def test_nothing_is_kept_that_a_younger_process_holds(
    slot: pathlib.Path,
    tree: workspace_tree.Folder,
    tmp_path: pathlib.Path,
    start: Callable[[str], None],
    line: str,
) -> None:
    """Whoever works in the folder, or has something of it open, could write into it."""
    remains.leave(slot, KEY, tree, workspace_tree.EMPTY, 0)
    start(line)
    assert not _keep(slot, tmp_path)
    assert (slot / "workspace").exists()


def test_an_older_process_cannot_hold_anything() -> None:
    """This process is younger than the first one: so the two can be told apart."""
    assert remains._began("1") < remains._began("self") == remains._began(str(os.getpid()))


@pytest.mark.usefixtures("_alone")
async def test_of_deleted_sessions_nothing_stays(
    slot: pathlib.Path, tree: workspace_tree.Folder, tmp_path: pathlib.Path
) -> None:
    """Its files go from the node with the next look; those of sessions that sleep stay."""
    sessions = memory_store.MemoryStore().sessions
    kept = kept_workspaces.KeptWorkspaces(tmp_path / "kept", clock.FakeClock())
    await sessions.create(store_samples.new(KEY))
    at_ms = clock.FakeClock().now_ms()
    assert remains.leave(slot, KEY, tree, workspace_tree.EMPTY, at_ms)
    assert remains.keep(kept, slot, KEY)
    await remains.forget_deleted(kept, sessions)
    assert KEY in kept
    await sessions.delete(KEY)
    await remains.forget_deleted(kept, sessions)
    assert KEY not in kept
    assert not (tmp_path / "kept" / KEY.tenant / KEY.session).exists()
