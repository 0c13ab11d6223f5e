"""A process that other processes' writes to disk depend on."""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_IO_FLUSHER: Final = 57


def become_io_flusher() -> bool:
    """Mark this thread as one that writes to disk for others; return whether that is allowed.

    Where memory is short, a process that asks for some may first have to write out dirty pages. If
    those belong to a file system on a device that this very process serves, it would wait for
    itself; this mark (Linux 5.6, prctl(2)) keeps it from that. It takes CAP_SYS_RESOURCE.
    """
    zero = ctypes.c_ulong(0)
    done = ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, ctypes.c_ulong(1), zero, zero, zero)
    return bool(done == 0)
