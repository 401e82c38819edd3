"""The house rules hold, and the checker that says so can tell when they do not."""

import pathlib
import subprocess
import sys

import pytest

import house
from torpor import errors

ROOT = pathlib.Path(__file__).resolve().parents[2]

LUA_HEADER = "#!lua\n-- add: one more.\n--\n-- KEYS  1 counter\n-- ARGV  none\n-- returns the sum\n"

IMPORT_ALL = """
import importlib, pkgutil, sys, torpor
for module in pkgutil.walk_packages(torpor.__path__, "torpor."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name, module in list(sys.modules.items()):
    assert name.split(".")[0] not in {"actors", "router", "storage"}, name
from torpor.storage import records
print(records.Head.__module__)
"""


def _write(root: pathlib.Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_rules_hold() -> None:
    """This checkout breaks none of the rules that tools/house.py checks."""
    assert house.violations(ROOT) == []


def test_every_part_is_looked_at() -> None:
    """The checker sees the modules of the linked parts, at their real paths and once."""
    seen = [path.relative_to(ROOT) for path in house.sources(ROOT, ".py")]
    assert pathlib.Path("storage/records.py") in seen
    assert pathlib.Path("src/torpor/ids.py") in seen
    assert not [path for path in seen if path.is_relative_to("src/torpor/storage")]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("storage/long.py", "x = 1\n" * 401, "module of 401 lines"),
        ("router/f.py", "def f() -> None:\n" + "    pass\n" * 70, "f has 71 lines"),
        ("actors/__init__.py", "def f() -> None: ...\n", "re-exports"),
        ("storage/lua/a.lua", "return 1\n", "does not name KEYS"),
        ("storage/lua/b.lua", LUA_HEADER + "local k = KEYS[1] .. ':x'\n", "keys come in KEYS"),
        ("storage/lua/c.lua", LUA_HEADER + "redis.call('GET', 'x')\n", "keys come in KEYS"),
        ("storage/lua/d.lua", LUA_HEADER + "redis.call('GET', ARGV[1])\n", "keys come in KEYS"),
        ("requirements.lock", "--index-url https://index.example\n", "names a registry"),
    ],
)
def test_violations_are_found(tmp_path: pathlib.Path, name: str, text: str, complaint: str) -> None:
    """Each rule reports a file that breaks it, by its path."""
    _write(tmp_path, name, text)
    found = house.violations(tmp_path)
    assert any(line.startswith(name) and complaint in line for line in found), found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("actors/__init__.py", '"""A part."""\n\nfrom torpor import ids\n\n__all__ = ["ids"]\n'),
        ("storage/lua/a.lua", LUA_HEADER + "return redis.call('INCR', KEYS[1]) -- ..KEYS[2]\n"),
        ("storage/lua/b.lua", LUA_HEADER + "redis.call('PUBLISH', ARGV[1], 'c')\n"),
        ("requirements.lock", "blake3==1.0.11 \\\n    --hash=sha256:00\n    # via torpor\n"),
    ],
)
def test_what_is_allowed_passes(tmp_path: pathlib.Path, name: str, text: str) -> None:
    """The rules let through what they are not about."""
    _write(tmp_path, name, text)
    assert house.violations(tmp_path) == []


def test_every_module_has_one_identity() -> None:
    """No module imports a part by its folder: pickles would name a class nobody else has."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torpor.storage.records"


def _errors(cls: type[errors.TorporError]) -> list[type[errors.TorporError]]:
    return [leaf for child in cls.__subclasses__() for leaf in (child, *_errors(child))]


def test_every_error_says_what_it_is() -> None:
    """Each error has a reason of its own, a docstring (its default message), and is in the tree."""
    classes = [cls for cls in _errors(errors.TorporError) if cls.__module__ == errors.__name__]
    reasons = [cls.reason for cls in classes]
    assert len(reasons) == len(set(reasons))
    for cls in classes:
        assert cls.__doc__, cls
        assert cls.__name__ in (errors.__doc__ or ""), cls
        assert errors.by_reason(cls.reason) is cls


def test_no_file_names_this_machine() -> None:
    """Nothing that is shipped mentions where this checkout or its owner's home lies."""
    private = [f"{ROOT}/", "/root/", "/home/", "/Users/"]
    paths = [path for suffix in (".py", ".lua") for path in house.sources(ROOT, suffix)]
    for pattern in ("*.md", "*.toml", "*.yaml", "*.lock", "Makefile", ".ci/*", "docs/**/*.md"):
        paths += ROOT.glob(pattern)
    for path in paths:
        if path != pathlib.Path(__file__):
            text = path.read_text()
            assert not [word for word in private if word in text], path
