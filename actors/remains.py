"""What a session's process may leave behind that could still write into its workspace."""

import asyncio
import logging
import os
import pathlib

from torpor import errors
from torpor.actors import disposal
from torpor.storage import (
    kept_description,
    kept_workspaces,
    records,
    store,
    workspace_check,
    workspace_tree,
)

log = logging.getLogger(__name__)

_PROC = pathlib.Path("/proc")
#: In `/proc/<pid>/stat`, after the name: when the process began, in ticks since the boot.
_BEGAN = 19
#: Read again at the end of an activation that wrote them: a fraction of a second. A session that
#: wrote more leaves nothing, and its next wake restores it.
CHECKED_BYTES_MAX = 128 << 20


def leave(
    folder: pathlib.Path,
    key: records.SessionKey,
    tree: workspace_tree.Folder,
    since: workspace_tree.Folder,
    at_ms: int,
) -> bool:
    """Describe the workspace in `folder` for the next wake, as the last act of a session's process.

    `tree` is what the last commit names, `since` what was there at the wake. False, and nothing is
    left, if a child of the process lives, or a file is mapped for writing: what they write from now
    on might not show in a file's times. Nor if what was written through a map that is gone differs
    from what was committed, or it would take too long to tell.
    """
    workspace = folder / kept_workspaces.WORKSPACE
    if not tree.entries or _has_children() or _maps_for_writing(workspace):
        return False
    if not workspace_check.holds(workspace, tree, since, bytes_max=CHECKED_BYTES_MAX):
        return False
    return kept_description.write(folder, key, tree, at_ms=at_ms, since_ticks=_began("self"))


def keep(
    kept: kept_workspaces.KeptWorkspaces, folder: pathlib.Path, key: records.SessionKey
) -> bool:
    """Keep the workspace in a dead process's slot if it left in order and left nobody behind.

    To be called after the death and before the folder is removed. Blocks: looks at all processes.
    """
    head = kept_description.head(folder)
    if head is not None and _held(folder / kept_workspaces.WORKSPACE, head.since_ticks):
        return False
    return kept.keep(folder, key)


async def forget_deleted(kept: kept_workspaces.KeptWorkspaces, sessions: store.Sessions) -> None:
    """Remove what is kept of sessions that are deleted, and what is beyond the bounds."""
    for key in await asyncio.to_thread(kept.sessions):
        try:
            await sessions.head(key)
        except errors.NotFound:
            await asyncio.to_thread(kept.forget, key)
        except errors.TorporError as error:
            # The next round asks again, and a day ends it in any case.
            log.warning("not known whether %s is deleted: %s", key, error)
    await disposal.aside(kept.trim)


def _has_children() -> bool:
    threads = list(_PROC.glob("self/task/*/children"))
    # A kernel that does not tell of children must not be taken for one that says there are none.
    return not threads or any(path.read_bytes() for path in threads)


def _maps_for_writing(workspace: pathlib.Path) -> bool:
    below = f"{workspace}{os.sep}"
    with (_PROC / "self/maps").open(errors="surrogateescape") as lines:
        for line in lines:
            if below in line and {"w", "s"} <= set(line.split(maxsplit=2)[1]):
                return True
    return False


def _held(workspace: pathlib.Path, since_ticks: int) -> bool:
    """Whether a process as young as the dead one works in a workspace, or has a file of it open."""
    below = f"{workspace}{os.sep}"
    for process in _PROC.glob("[0-9]*"):
        try:
            if _began(process.name) < since_ticks:
                continue
            links = [process / "cwd", *(process / "fd").iterdir()]
        except OSError:
            # It ended meanwhile, or is another user's.
            continue
        if any(_target(link).startswith(below) for link in links):
            return True
    return False


def _target(link: pathlib.Path) -> str:
    try:
        return f"{link.readlink()}{os.sep}"
    except OSError:
        return ""


def _began(process: str) -> int:
    return int((_PROC / process / "stat").read_bytes().rpartition(b")")[2].split()[_BEGAN])
