"""Agent definitions of the tenant."""

from collections.abc import AsyncGenerator

from torpor import ids
from torpor.client import connection, decoding, values
from torpor.v1 import agents_pb2


class Agents:
    """`client.agents`."""

    def __init__(self, link: connection.Connection) -> None:
        self._link = link

    async def register(
        self, import_path: str, *, name: str = "", timeout_s: float | None = None
    ) -> values.AgentInfo:
        """Register `module:Class`, which every node can import; the same code makes no new version.

        Args:
            import_path: where the class is.
            name: the class's name in lower case if empty.
            timeout_s: for everything, retries included.

        Raises:
            AgentImportFailed: with what the import said.
        """
        response = await self._link.call(
            self._link.agents.RegisterAgent,
            agents_pb2.RegisterAgentRequest(
                import_path=import_path, name=name, request_id=ids.random_id("req")
            ),
            timeout_s=timeout_s,
            default_s=connection.REGISTER_TIMEOUT_S,
        )
        return decoding.agent(response.agent)

    async def list(self, *, timeout_s: float | None = None) -> AsyncGenerator[values.AgentInfo]:
        """Yield the newest version of each agent, by name."""
        token = ""
        while True:
            page = await self._link.call(
                self._link.agents.ListAgents,
                agents_pb2.ListAgentsRequest(page_token=token),
                timeout_s=timeout_s,
                default_s=connection.READ_TIMEOUT_S,
            )
            for agent in page.agents:
                yield decoding.agent(agent)
            token = page.next_page_token
            if not token:
                return
