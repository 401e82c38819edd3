"""A gateway of scripted answers, for tests of the client and of the command line."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf import descriptor, message
from grpc import aio

from torpor import errors, status
from torpor.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    agents_pb2,
    agents_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    workspaces_pb2,
    workspaces_pb2_grpc,
)

#: What a call is answered with: a message, several (a stream, which may end in an error), or an
#: error.
Answer = message.Message | list[Any] | errors.TorporError

SERVICES = (
    (sessions_pb2, sessions_pb2_grpc, "Sessions"),
    (workspaces_pb2, workspaces_pb2_grpc, "Workspaces"),
    (agents_pb2, agents_pb2_grpc, "Agents"),
    (admin_pb2, admin_pb2_grpc, "Admin"),
)


class ScriptedGateway:
    """Answers each method from its script, in order; the last answer is given ever after."""

    def __init__(self) -> None:
        #: method → answers to come.
        self.script: dict[str, list[Answer]] = {}
        #: (method, request), in order of arrival; requests of a client stream are a list.
        self.requests: list[tuple[str, Any]] = []
        self.metadata: dict[str, str] = {}
        self.address = ""
        self._server = aio.server()
        for protos, services, name in SERVICES:
            servicer = self._servicer(protos.DESCRIPTOR.services_by_name[name])
            getattr(services, f"add_{name}Servicer_to_server")(servicer, self._server)

    async def start(self, port: int = 0) -> "ScriptedGateway":
        """Listen on loopback."""
        bound = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{bound}"
        await self._server.start()
        return self

    async def stop(self) -> None:
        """Stop at once."""
        await self._server.stop(None)

    def of(self, method: str) -> list[Any]:
        """Return the requests of one method."""
        return [request for name, request in self.requests if name == method]

    def _servicer(self, service: descriptor.ServiceDescriptor) -> object:
        methods: dict[str, Callable[..., Any]] = {
            method.name: (self._streamed if method.server_streaming else self._unary)(method.name)
            for method in service.methods
        }
        return type(service.name, (), methods)()

    def _answer(self, method: str, context: Any, request: Any) -> Answer:
        self.requests.append((method, request))
        self.metadata = dict(context.invocation_metadata())
        answers = self.script[method]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def _unary(self, method: str) -> Callable[..., Any]:
        async def answer(_: object, request: Any, context: Any) -> Any:
            if not isinstance(request, message.Message):
                request = [item async for item in request]
            chosen = self._answer(method, context, request)
            if isinstance(chosen, errors.TorporError):
                await context.abort(*status.to_status(chosen))
            return chosen

        return answer

    def _streamed(self, method: str) -> Callable[..., Any]:
        async def answer(_: object, request: Any, context: Any) -> AsyncIterator[Any]:
            chosen = self._answer(method, context, request)
            for item in chosen if isinstance(chosen, list) else [chosen]:
                if isinstance(item, errors.TorporError):
                    await context.abort(*status.to_status(item))
                yield item

        return answer
