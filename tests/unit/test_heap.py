"""What is free in the heap of a process that forks."""

import platform
import subprocess
import sys
import types
from typing import NoReturn

import pytest

from torpor.actors import heap

#: Leaves every other of many pieces free, fills what is free, and prints how many pieces were and
#: are free, with their bytes, and how often the heap was asked for that.
PROGRAM = """
import ctypes
from torpor.actors import heap
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = (ctypes.c_void_p,)
pieces = [libc.malloc(2_000 + 48 * (number % 5)) for number in range(8_000)]
for piece in pieces[::2]:
    libc.free(piece)

def holes():
    found = libc.mallinfo2()
    return found.ordblks, found.fordblks - found.keepcost

asked, ask = [], heap._libc.mallinfo2
libc.mallinfo2.restype = heap._Info
before = holes()
heap._libc.mallinfo2 = lambda: asked.append(1) or ask()
heap.fill_holes()
print(*before, *holes(), len(asked))
"""


def _is_known() -> bool:
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 33)


@pytest.mark.skipif(not _is_known(), reason="the C library does not tell what is free")
def test_holes_are_filled() -> None:
    """Few are left, with little in them; in a process of its own, as they stay filled.

    To ask the heap takes as long as there are holes, so it is not asked for each.
    """
    command = [sys.executable, "-c", PROGRAM]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    holes, holes_bytes, left, left_bytes, asked = map(int, told.split())
    assert holes >= 3_900
    assert left < holes // 10
    assert left_bytes < holes_bytes // 10
    assert asked <= len(heap.SIZES_BYTES) + 1


def test_a_heap_that_does_not_tell_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is known of holes nothing is allocated."""

    def allocate(_: int) -> NoReturn:
        raise AssertionError("allocated")

    monkeypatch.setattr(heap, "IS_KNOWN", False)
    monkeypatch.setattr(heap, "_libc", types.SimpleNamespace(malloc=allocate))
    heap.fill_holes()
