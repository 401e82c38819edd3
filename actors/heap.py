"""Where children of a process allocate.

glibc's malloc uses the holes between what is allocated first. In a child each hole lies in a page
that it shares with its parent, until it writes there: then it has a copy of all of it. A parent
that fills its holes before it forks has children that allocate side by side.

Of the heap of the main thread alone: those of other threads are small in what forks.
"""

import ctypes

#: What is left of a hole that is filled is filled with something smaller. Small pieces that were
#: freed are kept apart by their sizes, in steps of 16 bytes.
SIZES_BYTES = (32_768, 16_384, 8_192, 4_096, 2_048, *range(1_032, 23, -16))
#: Takes tens of milliseconds; a heap with more holes than that keeps some.
PIECES_MAX = 100_000


class _Info(ctypes.Structure):
    """`struct mallinfo2` of <malloc.h>."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


_libc = ctypes.CDLL(None)
#: glibc 2.33 and later tell about their heap.
IS_KNOWN = hasattr(_libc, "mallinfo2")
if IS_KNOWN:
    _libc.mallinfo2.restype = _Info
    _libc.malloc.restype = _libc.sbrk.restype = ctypes.c_void_p
    _libc.malloc.argtypes = (ctypes.c_size_t,)
    _libc.sbrk.argtypes = (ctypes.c_ssize_t,)


def fill_holes() -> None:
    """Allocate what is free between what is in use, and never free it.

    Does nothing where the C library does not tell what is free.
    """
    if not IS_KNOWN:
        return
    found = _libc.mallinfo2()
    # Whatever malloc this is: no more is taken than it says to have.
    left_bytes, left = found.fordblks - found.keepcost, PIECES_MAX
    for size_bytes in SIZES_BYTES:
        free_end = _libc.sbrk(0) - _libc.mallinfo2().keepcost
        while left_bytes >= size_bytes and left:
            left -= 1
            piece = _libc.malloc(size_bytes)
            if piece is None or piece >= free_end:
                # No hole is as large.
                break
            left_bytes -= size_bytes
