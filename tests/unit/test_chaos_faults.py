"""What the battery's faults do to storage, requests, processes and clocks, without a deployment."""

import asyncio
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import time
import types
from collections.abc import Iterator

import grpc
import pytest

from torpor import errors
from torpor.storage import local_blobs, records, snapshot
from torpor.testing import served_gateway

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "chaos"))

import damage
import fault
import process_faults
import request_faults
import storage_faults
import wall_clock

QUOTA_BYTES = 1 << 20
DISK_BYTES = 1 << 20
HOUR_S = 3_600


def point(store: local_blobs.LocalBlobStore, root: pathlib.Path) -> records.RestorePoint:
    """Store a workspace; returns a version that has it, with a state of its own."""
    manifest = snapshot.Snapshotter(root, store, "red", QUOTA_BYTES).snapshot().manifest
    with store.upload("red") as upload:
        state = upload.put(os.urandom(64))
    return records.RestorePoint(
        version=1,
        next_seq=1,
        checkpoint=records.CheckpointRef(
            version=1, epoch=1, origin="s", state=state, state_bytes=64, inline=False
        ),
        manifest=manifest,
        at_ms=0,
        inline_state=None,
    )


@pytest.fixture
def two_versions(tmp_path: pathlib.Path) -> tuple[pathlib.Path, list[records.RestorePoint]]:
    """Return a shared storage, and two versions in it: one of three files has changed."""
    root, shared = tmp_path / "workspace", tmp_path / "shared"
    store = local_blobs.LocalBlobStore(shared)
    (root / "deep").mkdir(parents=True)
    for name in ("same", "changes", "deep/same"):
        (root / name).write_text(f"first {name}")
    before = point(store, root)
    (root / "changes").write_text("second, which is longer")
    return shared, [point(store, root), before]


def test_only_blobs_of_the_newest_version_are_damaged(
    two_versions: tuple[pathlib.Path, list[records.RestorePoint]],
) -> None:
    """The version before stays whole: of a folder's three files one is new, and its manifest."""
    shared, points = two_versions
    found = damage.own(shared, "red", points)
    assert sorted(kind for kind, _ in found) == ["file", "manifest", "state"]
    assert damage.own(shared, "red", [points[1], points[0]]) != found
    assert (damage.Kind.STATE, points[0].checkpoint.state) in found


@pytest.mark.parametrize("how", [storage_faults.tear, storage_faults.flip])
def test_damaged_blobs_are_not_what_was_written(
    two_versions: tuple[pathlib.Path, list[records.RestorePoint]], how: storage_faults.Break
) -> None:
    """Each kind of damage is found by the hash, wherever it is; a flip leaves the size."""
    shared, points = two_versions
    store, rng = local_blobs.LocalBlobStore(shared), random.Random(7)
    for _, digest in damage.own(shared, "red", points):
        blob = damage.path(shared, "red", digest)
        whole = blob.read_bytes()
        for _ in range(10):
            how(blob, rng)
            assert (blob.stat().st_size == len(whole)) is (how is storage_faults.flip)
            with pytest.raises(errors.BlobCorrupt):
                store.get("red", digest, bytes_max=1 << 20)
            blob.write_bytes(whole)
        assert store.get("red", digest, bytes_max=1 << 20) == whole


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Return a folder on a disk of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", os.fspath(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", os.fspath(folder)], check=True)


def test_full_disk_takes_what_is_spared_and_nothing_more(small_disk: pathlib.Path) -> None:
    """With nothing to spare not one block is left; with some, so much; removed, all of it."""
    ballast, blob = small_disk / storage_faults.BALLAST_FILE, small_disk / "blob"
    storage_faults.fill(ballast, 0)
    with pytest.raises(OSError, match="No space left"):
        blob.write_bytes(b"x")
    storage_faults.fill(ballast, 16 << 10)
    blob.write_bytes(bytes(16 << 10))
    with pytest.raises(OSError, match="No space left"):
        blob.write_bytes(bytes(17 << 10))
    ballast.unlink()
    blob.write_bytes(bytes(DISK_BYTES // 2))


async def test_gateways_refuse_nonsense_and_go_on(tmp_path: pathlib.Path) -> None:
    """Each request that a seed brings is refused in words, and a good one is answered after it."""
    async with served_gateway.serve(tmp_path) as served:
        gateway, rng = f"127.0.0.1:{served.port}", random.Random(7)
        said = set()
        for _ in range(30):
            await request_faults.send_noise(gateway, rng.randbytes(rng.randrange(1, 1 << 10)))
            request = request_faults.a_request(rng, "user-key")
            said.add(await request_faults.refusal(gateway, *request))
        assert said <= request_faults.REFUSALS
        assert len(said) > 2
        good = served_gateway.send("hello", "r2").SerializeToString()
        method = "/torpor.v1.Sessions/SendMessage"
        answered = await request_faults.refusal(gateway, method, good, "user-key")
        assert answered is grpc.StatusCode.OK


def test_burst_that_loses_or_repeats_something_is_seen() -> None:
    """An answer is in the history once, a refusal never, and what is unknown at most once."""
    answers = {
        "ok": None,
        "full": errors.MailboxFull("no"),
        "lost": errors.Unavailable("who knows"),
    }
    request_faults.check_burst(answers, ["ok"])
    request_faults.check_burst(answers, ["ok", "lost"])
    for wrong in ([], ["ok", "ok"], ["ok", "full"], ["ok", "lost", "lost"]):
        with pytest.raises(fault.Wrong, match="times"):
            request_faults.check_burst(answers, wrong)


def test_only_an_answer_is_judged() -> None:
    """A gateway that takes nonsense, or fails over it, is wrong; one that is away may be broken."""
    request_faults.check_refusal(grpc.StatusCode.INVALID_ARGUMENT, "here")
    for wrong in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL):
        with pytest.raises(fault.Wrong, match="here"):
            request_faults.check_refusal(wrong, "here")
    for away in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        with pytest.raises(RuntimeError, match="not answered"):
            request_faults.check_refusal(away, "here")


async def test_those_are_killed_that_were_found() -> None:
    """A second look might find nobody, and the fault would break nothing."""
    process = await asyncio.create_subprocess_exec("sleep", "60")
    looks = [[], [process.pid]]

    async def find() -> list[int]:
        return looks.pop(0) if looks else []

    await process_faults._kill_some(find, random.Random(7))
    assert await process.wait() == -signal.SIGKILL


async def test_a_commit_that_freezes_nobody_is_no_run(tmp_path: pathlib.Path) -> None:
    """Whoever was frozen holds no session: that is said, and it goes on."""
    signals = []

    async def nobody() -> list[None]:
        return []

    async def settled() -> None:
        signals.append("settled")

    world = types.SimpleNamespace(
        probes=types.SimpleNamespace(
            arm=lambda *_: None, disarm=lambda _: None, fired=lambda _: [12]
        ),
        residents=nobody,
        settled=settled,
        signal=lambda *what: signals.append(what),
    )
    frozen = fault.FAULTS["owner frozen before its commit, taken over, thawed"]
    with pytest.raises(RuntimeError, match="none holds a session"):
        async with frozen.inject(world, random.Random(7)):
            pass
    assert signals == [(12, signal.SIGCONT), "settled"]


def test_clock_of_python_programs_jumps_while_they_run(tmp_path: pathlib.Path) -> None:
    """Wall time follows the file, in a program's children too; monotonic time and sleep do not."""
    made = wall_clock.WallClock(tmp_path / "clock")
    program = textwrap.dedent(
        """
        import subprocess, sys, time
        if sys.argv[1:]:
            print(time.time())
            sys.exit()
        print(time.time(), flush=True)
        sys.stdin.readline()
        begun_s = time.monotonic()
        time.sleep(0.3)
        assert 0.3 <= time.monotonic() - begun_s < 60
        print(time.time_ns() / 1e9, flush=True)
        subprocess.run([sys.executable, __file__, "child"], check=True)
        """
    )
    path = tmp_path / "program.py"
    path.write_text(program)
    with subprocess.Popen(
        [sys.executable, path],
        env={**os.environ, **made.python_environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        before_s = float(running.stdout.readline()) - time.time()
        made.jump_to(-HOUR_S)
        print(file=running.stdin, flush=True)
        after_s, child_s = (float(running.stdout.readline()) - time.time() for _ in range(2))
    assert abs(before_s) < HOUR_S / 2
    assert abs(after_s + HOUR_S) < HOUR_S / 2
    assert abs(child_s + HOUR_S) < HOUR_S / 2
