"""What the distributions hold: the links below src/torpor must neither lose nor double a module."""

import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARTS = ("actors", "router", "storage")


def _python(*arguments: str, cwd: pathlib.Path, path: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _build(kind: str, source: pathlib.Path, destination: pathlib.Path) -> pathlib.Path:
    options = ("--no-isolation", f"--{kind}", "--outdir", str(destination))
    _python("-m", "build", *options, str(source), cwd=destination.parent)
    (built,) = destination.iterdir()
    return built


def _unpack(sdist: pathlib.Path, destination: pathlib.Path) -> pathlib.Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(destination, filter="data")
    (root,) = destination.iterdir()
    return root


def _names(wheel: pathlib.Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder that the source distribution unpacks to."""
    scratch = tmp_path_factory.mktemp("sdist")
    return _unpack(_build("sdist", ROOT, scratch / "built"), scratch / "unpacked")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel built from the checkout."""
    return _build("wheel", ROOT, tmp_path_factory.mktemp("wheel") / "built")


def test_both_ways_lead_to_the_same_wheel(
    unpacked_sdist: pathlib.Path, wheel: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A wheel built from the sdist, which has no links, holds what the checkout's wheel holds."""
    again = _build("wheel", unpacked_sdist, tmp_path / "built")
    assert _names(again) == _names(wheel)


def test_wheel_holds_every_part_once(wheel: pathlib.Path) -> None:
    """All modules and Lua files of the parts are below torpor/, and nothing beside it."""
    expected = {
        f"torpor/{path.relative_to(ROOT)}"
        for part in PARTS
        for pattern in ("*.py", "*.lua")
        for path in (ROOT / part).rglob(pattern)
    }
    names = _names(wheel)
    assert expected <= set(names)
    assert "torpor/py.typed" in names
    assert len(names) == len(set(names))
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"torpor"}


def test_sdist_holds_what_is_not_installed(unpacked_sdist: pathlib.Path) -> None:
    """Whoever has only the sdist can test it, deploy it and generate its protos anew."""
    assert (unpacked_sdist / "tests" / "unit" / pathlib.Path(__file__).name).is_file()
    assert (unpacked_sdist / "cluster.yaml").is_file()
    assert (unpacked_sdist / "LICENSE").is_file()
    assert any((unpacked_sdist / "loadtests").glob("*.py"))
    assert any((unpacked_sdist / "proto").rglob("*.proto"))


def test_installed_wheel_imports_without_the_checkout(
    wheel: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The parts are importable from the wheel alone, and only below torpor."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import importlib.util, torpor.storage.records as records\n"
        f"assert not [part for part in {PARTS} if importlib.util.find_spec(part)]\n"
        "print(records.__name__, records.__file__)"
    )
    shown = _python("-c", program, cwd=tmp_path, path=str(tmp_path / "site"))
    installed = tmp_path / "site" / "torpor" / "storage" / "records.py"
    assert shown.split() == ["torpor.storage.records", str(installed)]
