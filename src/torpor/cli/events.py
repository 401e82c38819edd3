"""Events as people read them; `--json` shows them as they are."""

import msgspec

from torpor import messages

#: Of one event: more is not read on a terminal.
SHOWN_MAX = 2_000
#: Before the lines of a traceback.
_INDENT = "  "


def body(event: messages.Event) -> str:
    """Return what an event says."""
    match event.type, event.data:
        case messages.SESSION_CREATED, {"agent": agent, "agent_version": version}:
            return f"{agent}@{version}"
        case messages.SESSION_WOKEN, {"node": node, "epoch": epoch}:
            return f"on {node}, epoch {epoch}"
        case messages.AGENT_ERROR, {"reason": reason, "message": message, "traceback": traceback}:
            lines = [f"{reason}: {message}", *str(traceback).splitlines()]
            return shortened(f"\n{_INDENT}".join(lines))
        case _, {"text": str(text)}:
            return shortened(text)
        case _:
            return shortened(msgspec.json.encode(event.data).decode())


def shortened(text: str) -> str:
    """Return text of a length that people read."""
    left_out = len(text) - SHOWN_MAX
    if left_out <= 0:
        return text
    return f"{text[:SHOWN_MAX]}… ({left_out} more characters; --json has all)"
