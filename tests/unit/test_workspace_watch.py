"""Folders that were left alone need no look; whatever is done to files, nothing is missed."""

import contextlib
import errno
import mmap
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torpor import errors
from torpor.storage import (
    local_blobs,
    manifest,
    snapshot,
    workspace_scan,
    workspace_tree,
    workspace_watch,
)

QUOTA = 1 << 30
FOLDERS = ("", "a/", "a/b/", "a/b/c/", "d/", "d/e/", "d/e/c/")
#: Files and folders in all of them.
NAMES = 3 * len(FOLDERS) - 1
Act = Callable[[pathlib.Path], object]


@pytest.fixture(autouse=True)
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all files be old enough to be told from changed ones, and every watch worth having."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 1_000_000_000)
    monkeypatch.setattr(workspace_watch, "ENTRIES_MIN", 0)


class Workspace:
    """A workspace of folders with 2 files each, and two who take snapshots of it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.root = folder / "workspace"
        self.store = local_blobs.LocalBlobStore(folder / "storage")
        for path in FOLDERS:
            (self.root / path).mkdir(parents=True, exist_ok=True)
            for name in ("one", "two"):
                (self.root / path / name).write_text(path + name)
        looking = self._snapshotter()
        self.tree = looking.snapshot().tree
        #: One that looks at every file.
        self.looking = self._snapshotter()
        self.looking.adopt(self.tree)
        #: One that listens to the kernel.
        self.listening = self._snapshotter()
        self.listening.adopt(self.tree)
        self.listening.watch(self.tree)

    def _snapshotter(self) -> snapshot.Snapshotter:
        return snapshot.Snapshotter(self.root, self.store, "acme", QUOTA)

    def agree(self) -> snapshot.Snapshot:
        """Take a snapshot by both; they must be the same."""
        # In this order: who looks opens what has changed, and the other would hear it.
        listening, looking = self.listening.snapshot(), self.looking.snapshot()
        assert listening.manifest == looking.manifest
        assert listening.entries == looking.entries
        assert listening.size_bytes == looking.size_bytes
        assert sorted(listening.changed) == sorted(looking.changed)
        self.looking.adopt(looking.tree)
        self.listening.adopt(listening.tree)
        return listening


@pytest.fixture
def workspace(tmp_path: pathlib.Path) -> Workspace:
    """Return a workspace that is stored and watched."""
    return Workspace(tmp_path)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of names of each folder that is looked at."""
    found: list[int] = []
    stamps = workspace_scan._stamps

    def look(fd: int) -> dict[str, workspace_tree.Stamp]:
        seen = stamps(fd)
        found.append(len(seen))
        return seen

    monkeypatch.setattr(workspace_scan, "_stamps", look)
    return found


def test_what_is_left_alone_is_not_looked_at(workspace: Workspace, looked: list[int]) -> None:
    """A turn that touches no file looks at none, however often names are listed."""
    for path in FOLDERS:
        os.listdir(workspace.root / path)  # noqa: PTH208 — as agents do
    taken = workspace.listening.snapshot()
    assert taken.tree is workspace.tree
    assert taken.entries == NAMES
    assert not looked


def test_only_what_was_touched_is_looked_at(workspace: Workspace, looked: list[int]) -> None:
    """A folder is looked at if a file in it or below it was opened, and then each time."""
    (workspace.root / "a" / "b" / "one").read_text()
    for _ in range(2):
        workspace.listening.snapshot()
        # The root, a and a/b; neither a/b/c, nor d and what is below it.
        assert looked == [4, 3, 3]
        looked.clear()
    (workspace.root / "d" / "new").write_text("new")
    workspace.agree()
    looked.clear()
    workspace.listening.snapshot()
    assert len(looked) == 4


def _written_in_place(root: pathlib.Path) -> None:
    with (root / "a/b/c/one").open("r+b") as file:
        file.write(b"A")


def _mapped(root: pathlib.Path) -> None:
    with (root / "a/b/one").open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        content[0] ^= 1


def _other_folder_with_its_name(root: pathlib.Path) -> None:
    shutil.copytree(root / "a/b", root / "other")
    (root / "other/c/one").write_text("other")
    (root / "a/b").rename(root / "aside")
    (root / "other").rename(root / "a/b")


def _folders_swapped(root: pathlib.Path) -> None:
    (root / "a/b").rename(root / "aside")
    (root / "d/e").rename(root / "a/b")
    (root / "aside").rename(root / "d/e")


def _link_in_its_place(root: pathlib.Path) -> None:
    (root / "a/b").rename(root / "aside")
    (root / "a/b").symlink_to("../aside")


def _by_another_process(root: pathlib.Path) -> None:
    code = f"import os; os.chdir('/'); open({str(root / 'd/e/one')!r}, 'a').write('more')"
    subprocess.run([sys.executable, "-c", code], check=True)


def _linked(root: pathlib.Path) -> None:
    (root / "d/link").hardlink_to(root / "a/one")
    (root / "d/link").write_text("by its other name")


ACTS: list[tuple[str, Act]] = [
    ("written", lambda root: (root / "a/b/c/one").write_text("new content")),
    ("written in place", _written_in_place),
    ("cut off", lambda root: os.truncate(root / "a/b/c/one", 1)),
    ("mapped", _mapped),
    ("made", lambda root: (root / "d/new").touch()),
    ("removed", lambda root: (root / "d/e/one").unlink()),
    ("folder removed", lambda root: shutil.rmtree(root / "a/b")),
    ("folder made", lambda root: (root / "d/e/f/g").mkdir(parents=True)),
    ("renamed", lambda root: (root / "one").rename(root / "three")),
    ("moved over another", lambda root: (root / "one").rename(root / "a/b/one")),
    ("folder moved", lambda root: (root / "a/b").rename(root / "d/b")),
    ("folder replaced", _other_folder_with_its_name),
    ("permissions", lambda root: (root / "a/b/one").chmod(0o700)),
    ("folder's permissions", lambda root: (root / "a/b").chmod(0o711)),
    ("times", lambda root: os.utime(root / "a/b/one", (1, 1))),
    ("linked to", lambda root: (root / "a/b/link").symlink_to("one")),
    ("folders swapped", _folders_swapped),
    ("folder becomes a link", _link_in_its_place),
    ("by another process", _by_another_process),
    ("by a hard link within", _linked),
]


@pytest.mark.parametrize("act", [act for _, act in ACTS], ids=[name for name, _ in ACTS])
def test_nothing_is_missed(workspace: Workspace, act: Act) -> None:
    """Whatever is done to a file or folder, it is found, and what comes after it, too."""
    act(workspace.root)
    workspace.agree()
    (workspace.root / "a").mkdir(exist_ok=True)
    (workspace.root / "a" / "later").write_text("later")
    assert "a/later" in workspace.agree().changed


@pytest.mark.parametrize("away", ["inside", "outside", "removed"])
def test_what_is_done_later_in_a_folder_that_was_replaced_is_found(
    workspace: Workspace, away: str
) -> None:
    """The kernel still watches the folder that had its name before, wherever that is now."""
    old = workspace.root / "d"
    if away == "removed":
        shutil.rmtree(old)
    else:
        old.rename((workspace.root if away == "inside" else workspace.root.parent) / "aside")
    (old / "e" / "c").mkdir(parents=True)
    (old / "e" / "c" / "new").write_text("new")
    workspace.agree()
    for content in ("newer", "newest"):
        (old / "e" / "c" / "new").write_text(content)
        assert workspace.agree().changed == ("d/e/c/new",)


def test_a_map_that_stays_is_looked_after(workspace: Workspace) -> None:
    """What is written through it turns later is found, though the kernel does not tell."""
    with (workspace.root / "a/b/one").open("r+b") as file:
        content = mmap.mmap(file.fileno(), 0)
    with contextlib.closing(content):
        workspace.agree()
        content[0] ^= 1
        content.flush()
        assert workspace.agree().changed == ("a/b/one",)


def test_more_than_the_kernel_can_tell(workspace: Workspace, looked: list[int]) -> None:
    """When it had to drop what it wanted to tell, everything is looked at."""
    for path in FOLDERS:
        (workspace.root / path / "one").write_text("new")
    watch = workspace.listening._watch
    assert watch is not None
    watch._take(-1, workspace_watch._Q_OVERFLOW)
    workspace.agree()
    looked.clear()
    workspace.listening.snapshot()
    assert len(looked) == len(FOLDERS)


def test_what_is_left_alone_counts(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is stored than a restore takes back, wherever the last names are."""
    monkeypatch.setattr(manifest, "ENTRIES_MAX", NAMES + 1)
    (workspace.root / "a" / "new").touch()
    workspace.agree()
    (workspace.root / "a" / "newer").touch()
    with pytest.raises(errors.WorkspaceQuotaExceeded):
        workspace.listening.snapshot()


def test_without_a_watch_everything_is_looked_at(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, looked: list[int]
) -> None:
    """A kernel that gives none, or not so many, costs time and nothing else."""

    def refuse(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(workspace_watch, "_checked", refuse)
    made = Workspace(tmp_path)
    looked.clear()
    assert made.listening.snapshot().tree is made.tree
    assert len(looked) == len(FOLDERS)


def test_a_small_workspace_is_not_watched(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's watches are few, and a look at some files costs next to nothing."""
    monkeypatch.setattr(workspace_watch, "ENTRIES_MIN", NAMES + 1)
    assert workspace_watch.Watch.worth_having(workspace.root, workspace.tree) is None
    monkeypatch.setattr(workspace_watch, "ENTRIES_MIN", NAMES)
    watch = workspace_watch.Watch.worth_having(workspace.root, workspace.tree)
    assert watch is not None
    watch.close()


def test_files_with_several_names_are_not_watched(tmp_path: pathlib.Path) -> None:
    """A link that was there at the beginning may be written under any of its names."""
    made = Workspace(tmp_path)
    (made.root / "d/link").hardlink_to(made.root / "a/one")
    tree = made.agree().tree
    assert workspace_watch.Watch.worth_having(made.root, tree) is None


class _Chaos:
    """Does to a tree what programs do, decided by a random number."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = root
        self._exits = contextlib.ExitStack()

    def close(self) -> None:
        self._exits.close()

    def act(self, rng: random.Random) -> None:
        acts = [self._write, self._append, self._hold, self._map, self._remove, self._move]
        acts += [self._make, self._permit, self._read, self._link]
        with contextlib.suppress(OSError, ValueError):
            rng.choice(acts)(rng)

    def _any(self, rng: random.Random, *, folder: bool) -> pathlib.Path:
        found = [self._root, *self._root.rglob("*")]
        return rng.choice(sorted(p for p in found if p.is_dir() == folder and not p.is_symlink()))

    def _write(self, rng: random.Random) -> None:
        self._any(rng, folder=False).write_bytes(rng.randbytes(rng.randrange(9)))

    def _append(self, rng: random.Random) -> None:
        with self._any(rng, folder=False).open("ab") as file:
            file.write(b"+")

    def _hold(self, rng: random.Random) -> None:
        file = self._exits.enter_context(self._any(rng, folder=False).open("ab", buffering=0))
        file.write(b"held")

    def _map(self, rng: random.Random) -> None:
        with self._any(rng, folder=False).open("r+b") as file:
            content = self._exits.enter_context(mmap.mmap(file.fileno(), 0))
        content[0] = rng.randrange(256)
        content.flush()

    def _remove(self, rng: random.Random) -> None:
        place = self._any(rng, folder=rng.random() < 0.2)
        if place != self._root:
            shutil.rmtree(place) if place.is_dir() else place.unlink()

    def _move(self, rng: random.Random) -> None:
        target = self._any(rng, folder=True) / rng.choice(["one", "two", "b", "c"])
        self._any(rng, folder=rng.random() < 0.4).rename(target)

    def _make(self, rng: random.Random) -> None:
        (self._any(rng, folder=True) / rng.choice("bcefx")).mkdir()

    def _link(self, rng: random.Random) -> None:
        target = self._any(rng, folder=True) / rng.choice(["one", "link"])
        target.hardlink_to(self._any(rng, folder=False))

    def _permit(self, rng: random.Random) -> None:
        self._any(rng, folder=rng.random() < 0.5).chmod(rng.choice([0o700, 0o755, 0o744]))

    def _read(self, rng: random.Random) -> None:
        self._any(rng, folder=False).read_bytes()


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_both_always_agree(tmp_path: pathlib.Path, turns: list[int], rng: random.Random) -> None:
    """Turn after turn of anything: who listens stores what who looks at everything stores."""
    made = Workspace(tmp_path / os.urandom(8).hex())
    chaos = _Chaos(made.root)
    with contextlib.closing(chaos):
        for acts in turns:
            for _ in range(acts):
                chaos.act(rng)
            made.agree()
