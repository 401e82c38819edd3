"""Whether this machine can run a deployment: one small check a question, each with its remedy."""

import asyncio
import enum
import errno
import logging
import os
import pathlib
import re
import resource
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata

import msgspec

from torpor import deployment, errors, ids

PYTHON_MIN = (3, 11)
#: The release that torpor is built on and tested with.
RAY_RELEASE = "2.60"
#: Free space below this is soon gone: a workspace alone may have 1 GiB.
FREE_BYTES_MIN = 5 << 30
#: A node holds some sockets and files for each of its sessions, Ray for each of its workers.
OPEN_FILES_MIN = 8_192
#: What answers on this machine answers at once.
PROBE_TIMEOUT_S = 5.0


class Verdict(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """What one check found."""

    name: str
    verdict: Verdict
    detail: str
    #: What to do; empty when all is well.
    remedy: str = ""


def machine(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what can be said without settings."""
    yield python_version(sys.version_info[:3])
    yield ray_version(_installed("ray"))
    yield bytecode(environ)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield open_files(soft)


def place(settings: deployment.Deployment) -> Iterator[Finding]:
    """Yield what can be said of a deployment's parts, each asked for in turn."""
    yield asyncio.run(store(settings))
    yield folder("storage", settings.storage, shared=True)
    yield folder("scratch", settings.scratch, shared=False)
    yield signing_key(settings.signing_key_file)
    yield gateway_port(settings.gateway_host, settings.gateway_port)


def local_folder() -> Finding:
    """What to say where `torpor dev` has been at work, and has ended: nothing is wrong."""
    return Finding(
        "settings",
        Verdict.WARN,
        "the `torpor dev` of this folder does not run",
        "start `torpor dev`, or use --config to name the settings of a deployment",
    )


def python_version(version: tuple[int, int, int]) -> Finding:
    """Whether Python is new enough."""
    shown = ".".join(map(str, version))
    if version[:2] >= PYTHON_MIN:
        return Finding("python", Verdict.OK, shown)
    return Finding("python", Verdict.FAIL, shown, "use Python 3.11 or newer")


def ray_version(version: str | None) -> Finding:
    """Whether the Ray that is installed is the one torpor reaches into."""
    if version is None:
        return Finding("ray", Verdict.FAIL, "not installed", f"install ray=={RAY_RELEASE}.*")
    if version.startswith(f"{RAY_RELEASE}."):
        return Finding("ray", Verdict.OK, version)
    return Finding(
        "ray",
        Verdict.FAIL,
        f"{version}, and torpor is built on {RAY_RELEASE}",
        f"install ray=={RAY_RELEASE}.*",
    )


def bytecode(environ: Mapping[str, str]) -> Finding:
    """Whether every process would compile its modules anew."""
    if environ.get("PYTHONDONTWRITEBYTECODE"):
        return Finding(
            "bytecode",
            Verdict.WARN,
            "PYTHONDONTWRITEBYTECODE is set: each process compiles what it imports",
            "unset PYTHONDONTWRITEBYTECODE; starting sessions is several times faster",
        )
    return Finding("bytecode", Verdict.OK, "is written")


def open_files(soft_limit: int) -> Finding:
    """Whether a node's processes may open enough files and sockets."""
    if soft_limit == resource.RLIM_INFINITY or soft_limit >= OPEN_FILES_MIN:
        return Finding("open files", Verdict.OK, str(soft_limit))
    return Finding(
        "open files",
        Verdict.WARN,
        f"{soft_limit} at a time",
        f"run `ulimit -n {OPEN_FILES_MIN}` before torpor, or set LimitNOFILE",
    )


async def store(settings: deployment.Deployment) -> Finding:
    """Whether the store answers, and keeps what the durability level promises."""
    from torpor.storage import redis_store

    opened = redis_store.open(settings)
    try:
        notes = await asyncio.wait_for(opened.check_durability(), PROBE_TIMEOUT_S)
    except errors.StoreBelowDurability as error:
        return _failure("store", error)
    except (errors.TorporError, TimeoutError) as error:
        detail = getattr(error, "message", "") or f"no answer in {PROBE_TIMEOUT_S:g} s"
        return Finding("store", Verdict.FAIL, detail, "start it, or correct store_url")
    finally:
        await opened.close()
    if notes:
        return Finding(
            "store", Verdict.WARN, "; ".join(notes), "allow CONFIG GET, or check by hand"
        )
    return Finding("store", Verdict.OK, f"answers, reaches {settings.durability}")


def folder(name: str, path: pathlib.Path, *, shared: bool) -> Finding:
    """Whether files can be written and synced there and, if shared, published once and for all."""
    try:
        problem = _probe(path, shared=shared)
    except OSError as error:
        detail = f"{path}: {error.strerror}"
        if error.errno == errno.ENOENT:
            return Finding(name, Verdict.FAIL, detail, f"make it: `mkdir -p {path}`")
        return Finding(name, Verdict.FAIL, detail, "let torpor's user write there")
    if problem:
        return Finding(name, Verdict.FAIL, f"{path}: {problem}", "use a local disk or NFS")
    free_bytes = shutil.disk_usage(path).free
    detail = f"{path}, {free_bytes / (1 << 30):.1f} GiB free"
    if free_bytes < FREE_BYTES_MIN:
        return Finding(
            name, Verdict.WARN, detail, f"make room: {FREE_BYTES_MIN >> 30} GiB at least"
        )
    return Finding(name, Verdict.OK, detail)


def signing_key(path: pathlib.Path) -> Finding:
    """Whether the keys that sign checkpoints can be read, and by their owner alone."""
    from torpor.storage import keyring

    try:
        keyring.load(path)
    except errors.SigningKeyMissing as error:
        return _failure("signing key", error)
    return Finding("signing key", Verdict.OK, str(path))


def gateway_port(host: str, port: int) -> Finding:
    """Whether the gateway's port is free, or a gateway of ours answers there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return Finding(
                    "gateway port",
                    Verdict.FAIL,
                    f"{host}:{port}: {error.strerror}",
                    "correct gateway_host and gateway_port",
                )
        else:
            return Finding("gateway port", Verdict.OK, f"{host}:{port} is free")
    if _speaks_torpor("127.0.0.1" if host == "0.0.0.0" else host, port):  # noqa: S104
        return Finding("gateway port", Verdict.OK, f"{host}:{port}: a gateway answers")
    return Finding(
        "gateway port",
        Verdict.FAIL,
        f"{host}:{port} is taken by something else",
        f"see `ss -ltnp sport = :{port}`, or set gateway_port",
    )


def ray_cluster(address: str = "auto") -> Finding:
    """Whether there is a Ray cluster to run on, of the same Ray and Python."""
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        detail = str(error).splitlines()[0]
        return Finding(
            "ray cluster",
            Verdict.FAIL,
            detail,
            "run `torpor node start --head`, or set RAY_ADDRESS",
        )
    alive = sum(bool(node["Alive"]) for node in ray.nodes())
    found = ray.get_runtime_context().gcs_address
    ray.shutdown()
    return Finding("ray cluster", Verdict.OK, f"{found}, {alive} nodes")


def failed(findings: list[Finding]) -> bool:
    """Whether something has to be done before torpor can run."""
    return any(finding.verdict is Verdict.FAIL for finding in findings)


def _failure(name: str, error: errors.TorporError) -> Finding:
    """Return an error that says what is wrong, and after the first `: ` or `; ` what to do."""
    detail, *remedy = re.split("[:;] ", error.message, maxsplit=1)
    return Finding(name, Verdict.FAIL, detail, "".join(remedy))


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _probe(path: pathlib.Path, *, shared: bool) -> str:
    """Write and sync a file in the folder, and publish it as blobs are; returns what went wrong."""
    written, published = (path / ids.random_id(".torpor-doctor") for _ in range(2))
    try:
        with written.open("xb") as file:
            file.write(b"torpor")
            file.flush()
            os.fsync(file.fileno())
        return _published_once(written, published) if shared else ""
    finally:
        written.unlink(missing_ok=True)
        published.unlink(missing_ok=True)


def _published_once(written: pathlib.Path, published: pathlib.Path) -> str:
    try:
        published.hardlink_to(written)
    except OSError as error:
        return f"files cannot be linked ({error.strerror})"
    try:
        published.hardlink_to(written)
    except FileExistsError:
        return ""
    return "a link overwrote a file"


def _speaks_torpor(host: str, port: int) -> bool:
    from torpor import client

    policy = client.Policy(attempts_max=1)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with client.connect_sync(address, timeout_s=PROBE_TIMEOUT_S, policy=policy) as up:
            up.admin.nodes()
    except errors.TorporError as error:
        # Whatever a gateway of ours refuses has a more exact reason than these.
        return type(error) not in (errors.Unavailable, errors.DeadlineExceeded, errors.Internal)
    return True
