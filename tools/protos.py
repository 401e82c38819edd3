"""Generate `src/torpor/v1` from `proto/`; with `--check`, say whether that would change it."""

import filecmp
import pathlib
import sys
import tempfile
from importlib import resources

from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTOS = ROOT / "proto"
PACKAGE = pathlib.PurePath("torpor", "v1")
#: Beside this Python, which need not be on PATH.
PLUGINS = pathlib.Path(sys.executable).parent


def generate(destination: pathlib.Path) -> None:
    """Write modules and stubs of all protos below `destination`."""
    well_known = resources.files("grpc_tools") / "_proto"
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{well_known}",
            *(f"--{kind}_out={destination}" for kind in ("python", "grpc_python")),
            *(f"--{kind}_out=quiet:{destination}" for kind in ("mypy", "mypy_grpc")),
            *(
                f"--plugin={name}={PLUGINS / name}"
                for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
            ),
            *sources,
        ]
    )
    if code:
        raise SystemExit(code)
    (destination / PACKAGE / "__init__.py").write_text('"""Generated from proto/torpor/v1."""\n')


def main() -> None:
    """Generate, or compare."""
    if sys.argv[1:] != ["--check"]:
        generate(ROOT / "src")
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(pathlib.Path(scratch))
        fresh, kept = pathlib.Path(scratch) / PACKAGE, ROOT / "src" / PACKAGE
        names = sorted({path.name for path in (*fresh.iterdir(), *kept.glob("*.py*"))})
        _, differing, missing = filecmp.cmpfiles(fresh, kept, names, shallow=False)
    if differing or missing:
        sys.exit(f"not what the protos yield: {differing + missing}; run `make protos`")


if __name__ == "__main__":
    main()
