"""Finding an agent's class by its import path, and describing it without trusting it.

Run as a program it imports one agent and prints its description as JSON: registration does so in a
process of its own, because importing somebody's module runs it.
"""

import asyncio
import hashlib
import importlib
import inspect
import os
import sys
import traceback
from typing import Any

import msgspec

from torpor import definition, errors
from torpor.actors import protocol

#: Lines of a failed import's traceback that go to whoever deployed the agent.
TRACEBACK_LINES_MAX = 12
#: Importing an agent with pandas takes some seconds on a slow machine.
DESCRIBE_TIMEOUT_S = 60.0

_DESCRIBED: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    protocol.AgentDescription | protocol.Refusal
)


def load(import_path: str) -> type[definition.Agent]:
    """Import `module:Class` and return the class.

    Raises:
        InvalidField: the path has another form.
        AgentImportFailed: the import fails, or what is found there is no Agent.
    """
    module_name, colon, class_name = import_path.partition(":")
    if not (colon and module_name and class_name.isidentifier()):
        raise errors.InvalidField(
            f"import path {import_path!r} is not of the form module:Class", field="import_path"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except BaseException as error:
        lines = traceback.format_exception(error)
        tail = "".join(lines).splitlines()[-TRACEBACK_LINES_MAX:]
        raise errors.AgentImportFailed(
            f"cannot import {import_path}: {type(error).__name__}: {error}\n" + "\n".join(tail),
            import_path=import_path,
        ) from error
    if not (inspect.isclass(found) and issubclass(found, definition.Agent)):
        raise errors.AgentImportFailed(
            f"{import_path} is not a torpor.Agent (nor made by @torpor.agent)",
            import_path=import_path,
        )
    return found


def describe(import_path: str) -> protocol.AgentDescription:
    """Import an agent and say what it is.

    Raises:
        InvalidField: one of its settings cannot be read.
        AgentImportFailed: as `load`.
    """
    found = load(import_path)
    settings = definition.settings_of(found)
    try:
        source = inspect.getsource(sys.modules[found.__module__])
    except (OSError, TypeError, KeyError):
        source = ""
    digest = hashlib.sha256(source.encode() + msgspec.json.encode(settings)).hexdigest()
    return protocol.AgentDescription(
        import_path=import_path,
        default_name=found.__name__.lower(),
        digest=digest,
        settings=settings,
    )


async def describe_apart(import_path: str) -> protocol.AgentDescription:
    """Describe an agent in a process of its own.

    Raises:
        InvalidField: as `describe`.
        AgentImportFailed: as `load`; or the process ended without an answer, or not in time.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "torpor.actors.agent_code",
        import_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(), DESCRIBE_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise errors.AgentImportFailed(
            f"importing {import_path} took longer than {DESCRIBE_TIMEOUT_S:g} s"
        ) from None
    try:
        answer: protocol.AgentDescription | protocol.Refusal = _DESCRIBED.decode(stdout)
    except msgspec.MsgspecError:
        tail = stderr.decode(errors="replace")[-2000:]
        raise errors.AgentImportFailed(
            f"importing {import_path} ended the process ({process.returncode})\n{tail}"
        ) from None
    return protocol.accept(answer)


def main() -> None:
    """Print the description, or the refusal, of the agent named on the command line."""
    # Whatever the module prints while it is imported must not mix with the answer.
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    answer: protocol.AgentDescription | protocol.Refusal
    try:
        answer = describe(sys.argv[1])
    except errors.TorporError as error:
        answer = protocol.refuse(error)
    os.write(answer_fd, msgspec.json.encode(answer))
    # A module may have left threads behind that would keep the interpreter.
    os._exit(0)


if __name__ == "__main__":
    main()
