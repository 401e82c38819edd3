"""The example assistant against a scripted endpoint: words, tools, errors, sleep."""

import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import pytest

from torpor import errors
from torpor.messages import Message
from torpor.testing import context
from torpor.testing.openai_server import Answer, OpenAIServer, ToolCall

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"

Serve = Callable[..., OpenAIServer]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module examples/assistant.py."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("ASSISTANT_MODEL", "model-of-the-test")
    import assistant

    yield assistant
    del sys.modules["assistant"]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Return a function that starts an endpoint with these answers and points the client to it."""
    running: list[OpenAIServer] = []

    def start(*answers: Answer) -> OpenAIServer:
        server = OpenAIServer(answers).__enter__()
        running.append(server)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        return server

    yield start
    for server in running:
        server.__exit__()


async def awake(agent: Any) -> Any:
    """Return the agent as the runtime would have it before a message."""
    await agent.on_wake()
    return agent


def call(name: str, **arguments: str) -> Answer:
    """Return an answer that asks for one tool."""
    return Answer(tool_calls=(ToolCall(name=name, arguments=arguments),))


async def test_plain_answer_is_streamed(example: Any, serve: Serve, tmp_path: pathlib.Path) -> None:
    """The reply is the model's text, streamed as it comes; the model gets what was said."""
    server = serve(Answer(text="Good day to you"))
    ctx = context.FakeContext(tmp_path)
    agent = await awake(example.Assistant())
    assert await agent.on_message(ctx, Message(text="hello")) == "Good day to you"
    assert ctx.streamed == ["Good", " day", " to", " you"]
    assert server.requests[0]["model"] == "model-of-the-test"
    assert [m["content"] for m in server.requests[0]["messages"]] == [example.SYSTEM, "hello"]


async def test_two_rounds_of_tools(example: Any, serve: Serve, tmp_path: pathlib.Path) -> None:
    """Tools act in the workspace and their results go back under the calls' ids."""
    server = serve(
        call("write_file", path="notes/a.txt", content="remember"),
        Answer(tool_calls=(ToolCall(name="read_file", arguments={"path": "notes/a.txt"}),
                           ToolCall(name="list_files"))),
        Answer(text="done"),
    )  # fmt: skip
    ctx = context.FakeContext(tmp_path)
    agent = await awake(example.Assistant())
    assert await agent.on_message(ctx, Message(text="take a note")) == "done"
    assert (tmp_path / "notes/a.txt").read_text() == "remember"
    results = [m for m in server.requests[2]["messages"] if m["role"] == "tool"]
    assert [m["content"] for m in results] == ["wrote 8 characters", "remember", "notes/a.txt"]
    assert [m["tool_call_id"] for m in results] == ["call-1-0", "call-2-0", "call-2-1"]
    assert [data["name"] for _, data in ctx.emitted] == ["write_file", "read_file", "list_files"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (call("write_file", path="../out.txt", content="x"), "leads out of the workspace"),
        (call("read_file", path="/etc/passwd"), "leads out of the workspace"),
        (call("read_file", path="missing.txt"), "FileNotFoundError"),
        (call("no_such_tool"), "KeyError"),
        (call("read_file", file="a"), "TypeError"),
    ],
)
async def test_tool_errors_go_to_the_model(
    example: Any, serve: Serve, tmp_path: pathlib.Path, answer: Answer, said: str
) -> None:
    """A tool that fails, or would leave the workspace, tells the model and the turn goes on."""
    server = serve(answer, Answer(text="sorry"))
    agent = await awake(example.Assistant())
    assert await agent.on_message(context.FakeContext(tmp_path), Message(text="go")) == "sorry"
    assert said in server.requests[1]["messages"][-1]["content"]
    assert not (tmp_path.parent / "out.txt").exists()


async def test_endpoint_error(example: Any, serve: Serve, tmp_path: pathlib.Path) -> None:
    """What the endpoint says is wrong becomes the turn's error."""
    serve(Answer(status=401, text="this key is not known"))
    agent = await awake(example.Assistant())
    with pytest.raises(errors.TurnFailed, match="this key is not known"):
        await agent.on_message(context.FakeContext(tmp_path), Message(text="hello"))


async def test_tool_rounds_are_bounded(
    example: Any, serve: Serve, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that only ever wants tools is stopped."""
    monkeypatch.setattr(example, "ROUNDS_MAX", 3)
    server = serve(*[call("list_files")] * 9)
    agent = await awake(example.Assistant())
    with pytest.raises(errors.TurnFailed, match="after 3 rounds"):
        await agent.on_message(context.FakeContext(tmp_path), Message(text="hello"))
    assert len(server.requests) == 3


async def test_conversation_outlives_the_process(
    example: Any, serve: Serve, tmp_path: pathlib.Path
) -> None:
    """The conversation is pickled with the agent and the client is not."""
    server = serve(Answer(text="hello Ada"), Answer(text="Ada"))
    ctx = context.FakeContext(tmp_path)
    agent = await awake(example.Assistant())
    await agent.on_message(ctx, Message(text="I am Ada"))
    agent = await awake(cloudpickle.loads(cloudpickle.dumps(agent, protocol=5)))
    assert await agent.on_message(ctx, Message(text="who am I?")) == "Ada"
    said = [m["content"] for m in server.requests[1]["messages"][1:]]
    assert said == ["I am Ada", "hello Ada", "who am I?"]


async def test_long_conversations_lose_their_oldest_turns(
    example: Any, serve: Serve, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the bound whole turns go, so that no tool's result stands without its call."""
    monkeypatch.setattr(example, "CONVERSATION_MAX", 4)
    serve(call("list_files"), Answer(text="one"), Answer(text="two"))
    agent = await awake(example.Assistant())
    for text in ("first", "second"):
        await agent.on_message(context.FakeContext(tmp_path), Message(text=text))
    assert [m["content"] for m in agent.conversation] == ["second", "two"]


async def test_server_answers_whole_completions(example: Any, serve: Serve) -> None:
    """Without `stream` the scripted endpoint answers in one piece, and says when it has no more."""
    serve(Answer(text="hi"))
    client = example.openai.AsyncOpenAI()
    asked = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    completion = await client.chat.completions.create(**asked)
    assert completion.choices[0].message.content == "hi"
    with pytest.raises(example.openai.BadRequestError, match="gave no answer"):
        await client.chat.completions.create(**asked)
    await client.close()


async def test_counter(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """The README's agent counts over several messages and a sleep."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import counter

    agent = counter.Counter()
    ctx = context.FakeContext(tmp_path)
    assert await agent.on_message(ctx, Message(text="a b a")) == "a: 2, b: 1"
    agent = cloudpickle.loads(cloudpickle.dumps(agent))
    assert await agent.on_message(ctx, Message(text="b")) == "a: 2, b: 2"
