"""The house rules that no other tool checks: sizes, bare packages, Lua headers, clean lock file.

Prints one line a violation, as `path:line: what`, and exits with 1 if there are any.
"""

import ast
import itertools
import pathlib
import re
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
#: Where Python of ours is; the links below src/torpor lead back to the first three.
FOLDERS = ("actors", "router", "storage", "src", "tests", "loadtests", "examples", "tools")
LINKS = ("actors", "router", "storage")

#: What fits in a reader's head, and on three screens.
MODULE_LINES_MAX = 400
#: What fits on one screen.
FUNCTION_LINES_MAX = 70

_LUA_HEADER = ("KEYS", "ARGV", "returns")
#: A key that a script makes itself may lie in another hash slot, so Redis Cluster would refuse it.
_LUA_OWN_KEY = re.compile(
    r"""KEYS\[\w+\]\s*\.\.      # KEYS[1] .. 'x'
      | \.\.\s*KEYS\[         # 'x' .. KEYS[1]
      | redis\.p?call\(\s*(['"])(?!PUBLISH)\w+\1\s*,\s*(?:['"]|ARGV|[^,()]+\.\.)  # no key of KEYS
    """,
    re.VERBOSE,
)
_INDEX_OPTION = re.compile(r"://|^--(?!hash)")


def violations(root: pathlib.Path) -> list[str]:
    """Return what breaks a rule below `root`."""
    found: list[str] = []
    for path in sources(root, ".py"):
        text = path.read_text()
        checks = (_lengths, _bare_package) if path.name == "__init__.py" else (_lengths,)
        for check in checks:
            found += [f"{path.relative_to(root)}:{line}: {what}" for line, what in check(text)]
    for path in sources(root, ".lua"):
        found += [f"{path.relative_to(root)}:{line}: {what}" for line, what in _lua(path)]
    lock = root / "requirements.lock"
    if lock.exists():
        found += [f"{lock.name}:{line}: {what}" for line, what in _lock(lock.read_text())]
    return found


def sources(root: pathlib.Path, suffix: str) -> Iterator[pathlib.Path]:
    """Yield our files of one kind, each once and at its real path, without generated code."""
    skipped = (root / "src/torpor/v1", *(root / "src/torpor" / link for link in LINKS))
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob(f"*{suffix}")):
            if not any(path.is_relative_to(other) for other in skipped):
                yield path


def _lengths(text: str) -> Iterator[tuple[int, str]]:
    lines = text.count("\n")
    if lines > MODULE_LINES_MAX:
        yield 1, f"module of {lines} lines, {MODULE_LINES_MAX} are allowed"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                what = f"{node.name} has {length} lines, {FUNCTION_LINES_MAX} are allowed"
                yield node.lineno, what


def _bare_package(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.parse(text).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if not (docstring or exports or isinstance(node, ast.Import | ast.ImportFrom)):
            yield node.lineno, "a package's __init__ holds re-exports and __all__ only"


def _lua(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    lines = path.read_text().splitlines()
    header = " ".join(itertools.takewhile(lambda line: line.startswith(("#!", "--")), lines))
    for word in _LUA_HEADER:
        if word not in header:
            yield 1, f"the header comment does not name {word}"
    for number, line in enumerate(lines, 1):
        if _LUA_OWN_KEY.search(line.split("--")[0]):
            yield number, "keys come in KEYS, a script makes none"


def _lock(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if _INDEX_OPTION.search(line):
            yield number, "the lock file names a registry"


def main() -> None:
    """Print the violations of this checkout."""
    found = violations(ROOT)
    print("\n".join(found) or "house rules hold")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
