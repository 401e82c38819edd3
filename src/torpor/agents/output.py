"""What a cell prints, bounded."""

import io
from typing import NoReturn


class Output(io.TextIOBase):
    """A text stream that keeps its beginning and its end, and counts what it drops between them."""

    def __init__(self, chars_max: int) -> None:
        self._half = chars_max // 2
        self._head = ""
        self._tail = ""
        self._dropped = 0

    def writable(self) -> bool:
        """Return true: this is for writing."""
        return True

    def write(self, text: str) -> int:
        """Keep `text` as far as there is room."""
        room = self._half - len(self._head)
        self._head += text[:room]
        self._tail += text[room:]
        # Cut only when twice too long, so that many small writes do not copy the tail each time.
        if len(self._tail) > 2 * self._half:
            self._cut()
        return len(text)

    def text(self) -> str:
        """Return what was kept, with a line that says how much is missing."""
        if len(self._tail) > self._half:
            self._cut()
        gap = f"\n[… {self._dropped} characters left out …]\n" if self._dropped else ""
        return f"{self._head}{gap}{self._tail}"

    def _cut(self) -> None:
        excess = len(self._tail) - self._half
        self._dropped += excess
        self._tail = self._tail[excess:]


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
