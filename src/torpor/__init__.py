"""Agent sessions that live as Ray actors, sleep in Redis, and wake exactly where they were."""

from torpor.connecting import connect, connect_sync
from torpor.context import Context
from torpor.definition import Agent, agent
from torpor.loss import Lost
from torpor.messages import Event, Message, Reply

__all__ = [
    "Agent",
    "Context",
    "Event",
    "Lost",
    "Message",
    "Reply",
    "agent",
    "connect",
    "connect_sync",
]
