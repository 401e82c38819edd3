"""Where children of a process allocate.

glibc's malloc uses the holes between what is allocated first. In a child each hole lies in a page
that it shares with its parent, until it writes there: then it has a copy of all of it. A parent
that fills its holes before it forks has children that allocate side by side.
"""

import ctypes

#: What is left of a hole that is filled is filled with something smaller.
SIZES_BYTES = (32_768, 16_384, 8_192, 4_096, 2_048, 1_024, 768, 512, 384, 256, 192, 128, 96, 64, 24)


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
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = (ctypes.c_size_t,)
if IS_KNOWN := hasattr(_libc, "mallinfo2"):
    _libc.mallinfo2.restype = _Info


def holes() -> tuple[int, int]:
    """Return how many holes the heap has, and the bytes in them; none where it is not glibc's."""
    if not IS_KNOWN:
        return 0, 0
    found = _libc.mallinfo2()
    # The end of the heap is none.
    return max(0, found.ordblks - 1), max(0, found.fordblks - found.keepcost)


def fill_holes() -> None:
    """Allocate what is free between what is in use, and never free it."""
    left_bytes = holes()[1]
    for size_bytes in SIZES_BYTES:
        # No more is taken than there was.
        while left_bytes >= size_bytes:
            end_bytes = _libc.mallinfo2().keepcost
            _libc.malloc(size_bytes)
            left_bytes -= size_bytes
            if _libc.mallinfo2().keepcost != end_bytes:
                # It came from the heap's end: no hole is as large.
                break
