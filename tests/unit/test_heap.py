"""What is free in the heap of a process that forks."""

import subprocess
import sys

import pytest

from torpor.actors import heap

#: Leaves every other of many pieces free, fills what is free, and prints the bytes in holes.
PROGRAM = """
import ctypes
from torpor.actors import heap
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = (ctypes.c_void_p,)
pieces = [libc.malloc(2_000 + 48 * (number % 5)) for number in range(4_000)]
for piece in pieces[::2]:
    libc.free(piece)
before = heap.holes()
heap.fill_holes()
print(*before, *heap.holes())
"""


@pytest.mark.skipif(heap.holes() == (0, 0), reason="the C library is not glibc")
def test_holes_are_filled() -> None:
    """Few are left, with little in them; in a process of its own, as they stay filled."""
    command = [sys.executable, "-c", PROGRAM]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    holes, holes_bytes, left, left_bytes = map(int, told.split())
    assert holes >= 1_900
    assert left < holes // 10
    assert left_bytes < holes_bytes // 10


def test_a_heap_that_is_not_glibcs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is known of holes nothing is allocated."""
    monkeypatch.setattr(heap, "holes", lambda: (0, 0))
    monkeypatch.setattr(heap, "SIZES_BYTES", (1 << 60,))
    heap.fill_holes()
