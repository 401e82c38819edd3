"""The folder of one run, and what must not be left behind of it."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator

#: Short: paths of sockets end after 107 bytes, and Ray's are long.
_ROOT = pathlib.Path("/tmp")  # noqa: S108
_NAME = "tc"


@contextlib.contextmanager
def folder() -> Iterator[pathlib.Path]:
    """Make the folder of this process's run; it is removed with all that is in it."""
    path = _ROOT / f"{_NAME}{os.getpid()}"
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def disk(path: pathlib.Path, size_bytes: int) -> Iterator[pathlib.Path]:
    """Mount a small disk of its own in memory, which tests can fill."""
    path.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", path], check=True
    )
    try:
        yield path
    finally:
        # Lazily: a process that dies only now may still have a file open.
        subprocess.run(["umount", "--lazy", path], check=True)


def keep_room(path: pathlib.Path, free_bytes: int) -> None:
    """Let a disk of `disk` grow until so much is free on it."""
    usage = shutil.disk_usage(path)
    if usage.free < free_bytes:
        size = f"remount,size={usage.used + 2 * free_bytes}"
        subprocess.run(["mount", "-o", size, path], check=True)


def keep_logs(folder: pathlib.Path, where: pathlib.Path) -> None:
    """Copy all logs and records below a folder to another one, where they lie in the same way."""
    for log in folder.rglob("*.*"):
        if log.suffix in (".log", ".out", ".err", ".jsonl") and log.stat().st_size:
            kept = where / log.relative_to(folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, kept)


def remove_left_overs() -> None:
    """Remove folders of runs that were killed, their disks, and what still works with them."""
    for path in _ROOT.glob(f"{_NAME}*"):
        number = re.fullmatch(rf"{_NAME}(\d+)", path.name)
        if number is None or not is_over(number[1]):
            continue
        _kill_users(path)
        for line in pathlib.Path("/proc/mounts").read_text().splitlines():
            if (mounted := pathlib.Path(line.split()[1])).is_relative_to(path):
                subprocess.run(["umount", "--lazy", mounted], check=True)
        shutil.rmtree(path, ignore_errors=True)


def is_over(pid: str) -> bool:
    """Whether the run of a process is over, as its name in folders and namespaces tells."""
    try:
        # One that nobody has waited for is still there, without a command line.
        return not pathlib.Path("/proc", pid, "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


def _kill_users(path: pathlib.Path) -> None:
    """Kill the processes that work in a folder: stores, which are in no namespace."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(path):
                os.kill(int(entry.name), signal.SIGKILL)
