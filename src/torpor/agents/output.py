"""What a cell prints, bounded."""

import collections
import io
from typing import NoReturn


class Output(io.TextIOBase):
    """A text stream that keeps its beginning and its end, and counts what it drops between them."""

    def __init__(self, chars_max: int) -> None:
        self._half = chars_max // 2
        self._head: list[str] = []
        self._head_room = self._half
        self._tail: collections.deque[str] = collections.deque()
        self._tail_chars = 0
        self._dropped = 0

    def writable(self) -> bool:
        """Return true: this is for writing."""
        return True

    def write(self, text: str) -> int:
        """Keep `text` as far as there is room."""
        if self._head_room:
            self._head.append(text[: self._head_room])
        rest = text[self._head_room :]
        self._head_room -= len(text) - len(rest)
        if rest:
            self._tail.append(rest[-self._half :])
            self._tail_chars += len(self._tail[-1])
            self._dropped += len(rest) - len(self._tail[-1])
        # Whole pieces only, so that many small writes cost no copies; `text` cuts to the letter.
        while self._tail and self._tail_chars - len(self._tail[0]) >= self._half:
            piece = self._tail.popleft()
            self._tail_chars -= len(piece)
            self._dropped += len(piece)
        return len(text)

    def text(self) -> str:
        """Return what was kept, with a line that says how much is missing."""
        excess = max(0, self._tail_chars - self._half)
        dropped = self._dropped + excess
        gap = f"\n[… {dropped} characters left out …]\n" if dropped else ""
        return "".join(self._head) + gap + "".join(self._tail)[excess:]


class NoInput(io.TextIOBase):
    """The standard input of a cell: there is nobody at a keyboard."""

    def readable(self) -> bool:
        """Return true, so that reading gets as far as the error."""
        return True

    def read(self, size: int | None = -1, /) -> NoReturn:
        """Refuse.

        Raises:
            EOFError: always.
        """
        raise EOFError("input() does not work here: send the value with the next message")

    def readline(self, size: int = -1, /) -> NoReturn:  # type: ignore[override]
        """Refuse.

        Raises:
            EOFError: always.
        """
        self.read(size)


def shortened(text: str, chars_max: int) -> str:
    """Return `text`, cut in the middle if it is longer than `chars_max`."""
    output = Output(chars_max)
    output.write(text)
    return output.text()
