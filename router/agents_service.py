"""The service `torpor.v1.Agents`: registering agent versions and listing them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from torpor import definition, errors, ids
from torpor.actors import protocol
from torpor.router import call, convert, deadline, fields
from torpor.storage import records
from torpor.v1 import agents_pb2, agents_pb2_grpc

if TYPE_CHECKING:
    from torpor import clock
    from torpor.actors import calls
    from torpor.router import cluster_view, interceptors
    from torpor.storage import store

AGENTS_PAGE_DEFAULT = 100
AGENTS_PAGE_MAX = 1_000
#: Nodes asked to import an agent: one answer is enough, and three silent nodes are no accident.
NODES_TRIED_MAX = 3
#: An import of the heaviest libraries on a busy machine.
INSPECT_TIMEOUT_S = 60.0
#: `module:Class`; longer ones are a mistake.
IMPORT_PATH_CHARS_MAX = 500


class AgentsService(agents_pb2_grpc.AgentsServicer):
    """Agent definitions of the tenant."""

    def __init__(
        self,
        *,
        stored: store.Store,
        reach: calls.Calls,
        view: cluster_view.ClusterView,
        time: clock.Clock,
    ) -> None:
        self._store = stored
        self._calls = reach
        self._view = view
        self._clock = time

    async def RegisterAgent(
        self, request: agents_pb2.RegisterAgentRequest, context: interceptors.Context
    ) -> agents_pb2.RegisterAgentResponse:
        """Register a class that every node can import."""
        fields.request_id(request.request_id)
        if not 0 < len(request.import_path) <= IMPORT_PATH_CHARS_MAX:
            raise errors.InvalidField("import_path must be `module:Class`", field="import_path")
        found = await self._inspect(request.import_path, call.until.get())
        version = records.AgentVersion(
            name=ids.check_name("name", request.name or found.default_name),
            version=0,
            import_path=request.import_path,
            digest=found.digest,
            settings=msgspec.convert(
                found.settings, definition.AgentSettings, from_attributes=True
            ),
            created_ms=self._clock.now_ms(),
        )
        registered = await self._store.catalog.register(call.identity.get().tenant, version)
        return agents_pb2.RegisterAgentResponse(agent=convert.agent(registered))

    async def ListAgents(
        self, request: agents_pb2.ListAgentsRequest, context: interceptors.Context
    ) -> agents_pb2.ListAgentsResponse:
        """Return the newest version of each agent; the page token is the last name returned."""
        size = fields.page_size(
            request.page_size, default=AGENTS_PAGE_DEFAULT, size_max=AGENTS_PAGE_MAX
        )
        known = await self._store.catalog.agents(call.identity.get().tenant)
        rest = [version for version in known if version.name > request.page_token]
        page = rest[:size]
        return agents_pb2.ListAgentsResponse(
            agents=[convert.agent(version) for version in page],
            next_page_token=page[-1].name if len(rest) > size else "",
        )

    async def _inspect(
        self, import_path: str, until: deadline.Deadline
    ) -> protocol.AgentDescription:
        alive = [view.record for view in self._view.views if view.alive]
        for record in alive[:NODES_TRIED_MAX]:
            timeout_s = min(INSPECT_TIMEOUT_S, until.demand())
            try:
                async with self._view.office.during(record.node, record.incarnation):
                    return await self._calls.inspect_agent(
                        record.node, import_path, timeout_s=timeout_s
                    )
            except errors.OwnerUnreachable:
                continue
        raise errors.NoCapacity("no node answers that could import the agent; try again")
