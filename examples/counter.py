"""The smallest agent with a memory: it counts what it is told.

torpor dev --agent examples.counter:Counter
"""

import torpor


class Counter(torpor.Agent):
    """Counts words; the counts outlive every process that it lived in."""

    idle_timeout = "1m"

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Count the words of the message and say how often each was heard."""
        for word in message.text.split():
            self.counts[word] = self.counts.get(word, 0) + 1
        return ", ".join(f"{word}: {count}" for word, count in sorted(self.counts.items()))
