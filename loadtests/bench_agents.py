"""Agents for the benchmark; a module of its own, so that nodes import it by name alone."""

import os
import pathlib
import random
import time

import torpor

#: What an agent of the benchmark keeps between turns.
STATE_BYTES = 2_048


class Ledger(torpor.Agent):
    """Answers 200 bytes, and changes 2 KB of state at every turn."""

    def __init__(self) -> None:
        self.turns = 0
        self.notes = ""

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Remember something new and answer as long as the message is."""
        self.turns += 1
        words = f"turn {self.turns} of session {ctx.session} was about {message.text} "
        self.notes = (words * (STATE_BYTES // len(words) + 1))[:STATE_BYTES]
        return message.text[::-1]


class Librarian(torpor.Agent):
    """Keeps many files and changes one of them a turn."""

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """`make N`, `fill FIRST COUNT BYTES`, `change I`, `walk` (the seconds of a bare walk)."""
        verb, _, argument = message.text.partition(" ")
        if verb == "fill":
            first, count, size_bytes = map(int, argument.split())
            fill(pathlib.Path(), first, count, size_bytes)
            return argument
        if verb == "make":
            for i in range(int(argument)):
                _write(i, f"volume {i}")
            return argument
        if verb == "change":
            _write(0, f"volume {argument}, revised")
            return argument
        if verb == "walk":
            began_s = time.perf_counter()
            _walk(".")
            return str(time.perf_counter() - began_s)
        return message.text


def fill(folder: pathlib.Path, first: int, count: int, size_bytes: int) -> None:
    """Write files of random bytes, a hundred folders of them in the end."""
    for number in range(first, first + count):
        path = folder / _place(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(size_bytes))


def _place(number: int) -> pathlib.Path:
    return pathlib.Path(f"shelf-{number % 100:02}", f"book-{number:05}.txt")


def _write(number: int, text: str) -> None:
    path = _place(number)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def _walk(folder: str) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                _walk(entry.path)


class Burner(torpor.Agent):
    """Uses as much CPU a turn as its session's weight says."""

    idle_timeout = "1h"

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> str:
        """Burn the milliseconds that the message says."""
        until_s = time.thread_time() + float(message.text) / 1000
        while time.thread_time() < until_s:
            random.random()
        return "done"
