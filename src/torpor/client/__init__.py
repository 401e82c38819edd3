"""The Python client, async and blocking."""

from torpor.client.blocking import BlockingClient, BlockingSession, connect_sync
from torpor.client.client import Client, connect
from torpor.client.retry import Policy
from torpor.client.sessions import Session
from torpor.client.values import (
    Accepted,
    AgentInfo,
    Delta,
    FileInfo,
    HistoryPage,
    NodeInfo,
    Reply,
    SessionInfo,
    Usage,
    Written,
)

__all__ = [
    "Accepted",
    "AgentInfo",
    "BlockingClient",
    "BlockingSession",
    "Client",
    "Delta",
    "FileInfo",
    "HistoryPage",
    "NodeInfo",
    "Policy",
    "Reply",
    "Session",
    "SessionInfo",
    "Usage",
    "Written",
    "connect",
    "connect_sync",
]
