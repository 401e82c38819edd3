"""An agent that imports much, in a module of its own: importing it costs what its imports cost."""

import matplotlib.pyplot as plt
import pandas as pd

import torpor


class Analyst(torpor.Agent):
    """Looks at the words that it was sent."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Answer with the mean length of the words, and how fine a figure of them would be."""
        self.lengths = [len(word) for word in message.text.split()]
        return f"{pd.Series(self.lengths).mean():.1f} letters, {plt.rcParams['figure.dpi']} dpi"
