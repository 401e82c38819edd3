"""A tool-using assistant over any endpoint that speaks the OpenAI chat-completions API.

Set `OPENAI_BASE_URL`, `OPENAI_API_KEY` and `ASSISTANT_MODEL` where the session's process runs. The
conversation is the agent's state; the files that the model writes are the session's workspace.
"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import openai

import torpor
from torpor import errors

#: Rounds of tool calls in one turn: a model that needs more goes in circles, at a price.
ROUNDS_MAX = 16
#: Messages kept: the model's context is bounded, and so is the state that every turn commits.
CONVERSATION_MAX = 200
#: What `read_file` returns at most; a model reads long files badly anyway.
READ_CHARS_MAX = 20_000
#: Names that `list_files` returns at most.
LIST_MAX = 500

SYSTEM = "You are a helpful assistant. You have a folder of files; use the tools to work in it."


def inside(workspace: pathlib.Path, path: str) -> pathlib.Path:
    """Return `path` below the workspace, or refuse one that leads out of it."""
    root = workspace.resolve()
    full = (root / path).resolve()
    if not full.is_relative_to(root):
        raise ValueError(f"{path!r} leads out of the workspace")
    return full


def write_file(workspace: pathlib.Path, path: str, content: str) -> str:
    """Write a text file; folders are made as needed."""
    file = inside(workspace, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return f"wrote {len(content)} characters"


def read_file(workspace: pathlib.Path, path: str) -> str:
    """Return the content of a text file."""
    with inside(workspace, path).open(encoding="utf-8", errors="replace") as file:
        text = file.read(READ_CHARS_MAX + 1)
    cut = len(text) > READ_CHARS_MAX
    return text[:READ_CHARS_MAX] + ("\n[the file goes on]" if cut else "")


def list_files(workspace: pathlib.Path) -> str:
    """List all files, one path a line."""
    files = (p.relative_to(workspace) for p in sorted(workspace.rglob("*")) if p.is_file())
    names = [str(file) for file, _ in zip(files, range(LIST_MAX + 1), strict=False)]
    return "\n".join(names[:LIST_MAX] + ["[and more]"] * (len(names) > LIST_MAX)) or "no files"


def tool(function: Callable[..., str], *parameters: str) -> dict[str, Any]:
    """Describe a function to the model; all parameters are text."""
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in parameters},
        "required": list(parameters),
    }
    about = {"name": function.__name__, "description": function.__doc__, "parameters": schema}
    return {"type": "function", "function": about}


FUNCTIONS = {function.__name__: function for function in (write_file, read_file, list_files)}
TOOLS: Any = [tool(write_file, "path", "content"), tool(read_file, "path"), tool(list_files)]


class Assistant(torpor.Agent):
    """Answers with a language model, which may read and write files of the session."""

    def __init__(self) -> None:
        self.conversation: list[dict[str, Any]] = []
        self._client: openai.AsyncOpenAI | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the client out: it holds connections of this process."""
        return {**vars(self), "_client": None}

    async def on_wake(self) -> None:
        """Make the client; it reads `OPENAI_BASE_URL` itself."""
        # Endpoints of one's own often ask for no key, but the client insists on some text.
        self._client = openai.AsyncOpenAI(api_key=os.environ.get("OPENAI_API_KEY", "none"))

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Ask the model, do what it wants done, and return its answer."""
        self.conversation.append({"role": "user", "content": message.text})
        for _ in range(ROUNDS_MAX):
            answer = await self.ask(ctx)
            self.conversation.append(answer)
            if "tool_calls" not in answer:
                self.forget()
                return str(answer["content"])
            for call in answer["tool_calls"]:
                result = await self.use_tool(ctx, **call["function"])
                self.conversation.append(
                    {"role": "tool", "tool_call_id": call["id"], "content": result}
                )
        raise errors.TurnFailed(f"the model still wants tools after {ROUNDS_MAX} rounds of them")

    async def ask(self, ctx: torpor.Context) -> dict[str, Any]:
        """Return the model's next message, streaming its text to whoever watches."""
        if self._client is None:
            raise RuntimeError("there is no client: on_wake has to run before the first message")
        content = ""
        calls: dict[int, dict[str, Any]] = {}
        # The client's types spell out every kind of message; plain JSON is what travels.
        messages: Any = [{"role": "system", "content": SYSTEM}, *self.conversation]
        try:
            stream = await self._client.chat.completions.create(
                model=os.environ.get("ASSISTANT_MODEL", "gpt-4.1-mini"),
                messages=messages,
                tools=TOOLS,
                stream=True,
            )
            async for chunk in stream:
                for choice in chunk.choices:
                    if choice.delta.content:
                        content += choice.delta.content
                        ctx.stream(choice.delta.content)
                    for piece in choice.delta.tool_calls or ():
                        collect(calls, piece)
        except openai.APIError as failure:
            raise errors.TurnFailed(f"the model's endpoint failed: {failure}") from failure
        answer: dict[str, Any] = {"role": "assistant", "content": content}
        return {**answer, "tool_calls": list(calls.values())} if calls else answer

    async def use_tool(self, ctx: torpor.Context, name: str, arguments: str) -> str:
        """Run one tool; what goes wrong is told to the model, which can then do better."""
        await ctx.emit("tool.called", {"name": name, "arguments": arguments})
        try:
            return FUNCTIONS[name](ctx.workspace, **json.loads(arguments or "{}"))
        except (KeyError, TypeError, ValueError, OSError) as failure:
            return f"error: {type(failure).__name__}: {failure}"

    def forget(self) -> None:
        """Drop the oldest turns, each from a user's message to before the next one."""
        starts = [n for n, m in enumerate(self.conversation) if m["role"] == "user"]
        excess = len(self.conversation) - CONVERSATION_MAX
        keep = next((start for start in starts if start >= excess), starts[-1])
        self.conversation = self.conversation[keep:]


def collect(calls: dict[int, dict[str, Any]], piece: Any) -> None:
    """Add a piece of a streamed tool call to what came before it."""
    empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    call = calls.setdefault(piece.index, empty)
    call["id"] += piece.id or ""
    if piece.function is not None:
        call["function"]["name"] += piece.function.name or ""
        call["function"]["arguments"] += piece.function.arguments or ""
