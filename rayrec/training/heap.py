"""What a worker's C library does with memory that a pass over the layers frees and the next one takes again."""

import ctypes
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES: Final = 256 << 20  # of free memory at the heap's end; a layer's states are megabytes
_MAPPED_FROM: Final = 32 << 20  # larger blocks are a mapping of their own; the most that every glibc takes


def keep_freed_memory() -> None:
    """Let this process keep up to ``KEPT_BYTES`` that it has freed.

    glibc returns it at once by default, and on a CPU a tenth of a forward pass then goes into pages that are fresh
    again. Where the C library has no such setting (macOS, musl), nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, _MAPPED_FROM)
