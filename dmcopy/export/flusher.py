"""A process that other processes' writes to disk depend on."""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_IO_FLUSHER: Final = 57
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_IPC_LOCK: Final = 14


def become_io_flusher() -> bool:
    """Mark this thread as one that writes to disk for others; return whether that is allowed.

    Where memory is short, a process that asks for some may first have to write out dirty pages. If
    those belong to a file system on a device that this very process serves, it would wait for
    itself; this mark (Linux 5.6, prctl(2)) keeps it from that. It takes CAP_SYS_RESOURCE.
    """
    zero = ctypes.c_ulong(0)
    done = ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, ctypes.c_ulong(1), zero, zero, zero)
    return bool(done == 0)


def lock_memory() -> bool:
    """Keep this process's memory from being swapped out; return whether that is allowed.

    The swap may be on a device that this process serves. Without CAP_IPC_LOCK there is a limit to
    it, past which no memory at all would be given: then it is not tried.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        caps = next((line.split()[1] for line in file if line.startswith("CapEff:")), "0")
    if not int(caps, 16) >> _CAP_IPC_LOCK & 1:
        return False
    flags = _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT
    return bool(ctypes.CDLL(None).mlockall(flags) == 0)
