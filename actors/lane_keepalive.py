"""Noticing that the machine at the other end of a lane is gone."""

import socket

#: A lane with nothing under way is probed after so long, then so often, and so many times.
IDLE_S = 15
INTERVAL_S = 5
PROBES_MAX = 3
#: What was sent and is not acknowledged ends the connection after this.
UNACKNOWLEDGED_MS = 30_000


def watch(end: socket.socket) -> None:
    """Let the kernel end a TCP connection whose peer is gone; a Unix socket's cannot go unseen."""
    if end.family == socket.AF_UNIX:
        return
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES_MAX)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
