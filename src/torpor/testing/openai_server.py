"""A small server that speaks the OpenAI chat-completions API and says what a test tells it to.

with OpenAIServer([Answer(text="hello")]) as server:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    ...
assert server.requests[0]["messages"][-1]["content"] == "hi"
"""

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

import msgspec

#: A request of a test is small; more than this is a mistake.
_REQUEST_BYTES_MAX = 16 << 20


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the model wants to be called."""

    #: The function's name.
    name: str
    #: Its arguments, JSON-like.
    arguments: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the server answers to one request."""

    #: The model's words; streamed word by word.
    text: str = ""
    #: The tools that it wants to be called.
    tool_calls: tuple[ToolCall, ...] = ()
    #: The HTTP status; one other than 200 makes `text` the error's message.
    status: int = 200


class OpenAIServer:
    """Serves `POST {base_url}/chat/completions` on loopback, one `Answer` after the other.

    A request beyond the last answer gets status 400, which clients do not retry.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        #: The bodies of all requests, in order.
        self.requests: list[dict[str, Any]] = []
        self._answers = iter(answers)
        self._lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Be quiet: the test looks at `requests`."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    @property
    def base_url(self) -> str:
        """Return what `OPENAI_BASE_URL` is to be."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        length = min(int(handler.headers.get("Content-Length", 0)), _REQUEST_BYTES_MAX)
        body = json.loads(handler.rfile.read(length))
        if handler.path != "/v1/chat/completions":
            answer: Answer = Answer(status=404, text=f"there is no {handler.path}")
        else:
            with self._lock:
                self.requests.append(body)
                number = len(self.requests)
                answer = next(self._answers, _NO_MORE)
        if answer.status != 200:
            _send(handler, answer.status, _error(answer))
        elif body.get("stream"):
            _send_stream(handler, _chunks(answer, body["model"], number))
        else:
            _send(handler, 200, _completion(answer, body["model"], number))


_NO_MORE = Answer(status=400, text="the test gave no answer for this request")


def _send(handler: http.server.BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
    encoded = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(encoded)))
    handler.end_headers()
    handler.wfile.write(encoded)


def _send_stream(
    handler: http.server.BaseHTTPRequestHandler, chunks: Iterator[dict[str, Any]]
) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.end_headers()
    for chunk in chunks:
        handler.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
    handler.wfile.write(b"data: [DONE]\n\n")


def _error(answer: Answer) -> dict[str, Any]:
    return {"error": {"message": answer.text, "type": "error", "param": None, "code": None}}


def _completion(answer: Answer, model: str, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.tool_calls:
        message["tool_calls"] = _calls(answer, number)
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(answer)}
    return {**_head("chat.completion", model, number), "choices": [choice]}


def _chunks(answer: Answer, model: str, number: int) -> Iterator[dict[str, Any]]:
    """Cut an answer as real endpoints do: words, and a tool call's arguments in two pieces."""
    head = _head("chat.completion.chunk", model, number)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    words = answer.text.split(" ")
    deltas += [{"content": word if n == 0 else f" {word}"} for n, word in enumerate(words) if word]
    for index, call in enumerate(_calls(answer, number)):
        arguments = call["function"]["arguments"]
        half = len(arguments) // 2
        first = {**call, "function": {**call["function"], "arguments": arguments[:half]}}
        deltas.append({"tool_calls": [{"index": index, **first}]})
        rest = {"index": index, "function": {"arguments": arguments[half:]}}
        deltas.append({"tool_calls": [rest]})
    for delta in deltas:
        yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    last = {"index": 0, "delta": {}, "finish_reason": _finish_reason(answer)}
    yield {**head, "choices": [last]}


def _calls(answer: Answer, number: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call-{number}-{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for index, call in enumerate(answer.tool_calls)
    ]


def _finish_reason(answer: Answer) -> str:
    return "tool_calls" if answer.tool_calls else "stop"


def _head(kind: str, model: str, number: int) -> dict[str, Any]:
    return {"id": f"answer-{number}", "object": kind, "created": 0, "model": model}
