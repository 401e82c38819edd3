"""What a cell prints, bounded."""

import collections
import io
from typing import NoReturn

#: Printed text kept of one cell and stream. Everything is in the history twice (text and data),
#: as UTF-8, and one event has to stay well below `limits.EVENT_BYTES_MAX`.
CONSOLE_CHARS_MAX = 64 << 10


class Output(io.TextIOBase):
    """A text stream that keeps its beginning and its end, and counts what it drops between them."""

    def __init__(self, chars_max: int) -> None:
        self._half = chars_max // 2
        self._clear()

    def _clear(self) -> None:
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
        # Whole pieces only, so that many small writes cost no copies; `take` cuts to the letter.
        while self._tail and self._tail_chars - len(self._tail[0]) >= self._half:
            piece = self._tail.popleft()
            self._tail_chars -= len(piece)
            self._dropped += len(piece)
        return len(text)

    def take(self) -> str:
        """Return what was kept, with a line that says how much is missing, and begin anew."""
        excess = max(0, self._tail_chars - self._half)
        dropped = self._dropped + excess
        gap = f"\n[… {dropped} characters left out …]\n" if dropped else ""
        text = "".join(self._head) + gap + "".join(self._tail)[excess:]
        self._clear()
        return encodable(text)


class Console(Output):
    """The standard output or error of all cells of a process.

    One for all cells, because what a cell sets up (a logging handler, say) keeps writing to it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(CONSOLE_CHARS_MAX)
        self._name = name

    def __reduce__(self) -> str:
        return self._name


STDOUT = Console("STDOUT")
STDERR = Console("STDERR")


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
    return output.take()


def encodable(text: str) -> str:
    """Return `text` with lone surrogates written out: a reply is UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
