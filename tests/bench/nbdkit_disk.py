"""A disk by nbdkit's Python plugin, as quick as that can be: `nbdkit python THIS disk=PATH`.

Direct I/O, as the others have it, takes aligned memory: each of nbdkit's threads has its own.
"""

from __future__ import annotations

import mmap
import os
import threading

import nbdkit  # type: ignore[import-not-found]  # nbdkit's own, for its plugins alone

API_VERSION = 2
_own = threading.local()
_disk = ""


def config(key: str, value: str) -> None:
    """Take the one setting."""
    global _disk
    if key != "disk":
        raise ValueError(f"there is no {key}")
    _disk = value


def thread_model() -> int:
    """Let requests run side by side, as far as Python does."""
    found: int = nbdkit.THREAD_MODEL_PARALLEL
    return found


def open(_readonly: bool) -> int:  # noqa: A001
    """Open the disk for a connection."""
    return os.open(_disk, os.O_RDWR | os.O_DIRECT)


def close(fd: int) -> None:
    """Close it."""
    os.close(fd)


def get_size(fd: int) -> int:
    """Return its size."""
    return os.lseek(fd, 0, os.SEEK_END)


def pread(fd: int, buf: bytearray, offset: int, _flags: int) -> None:
    """Read into `buf`."""
    memory = _memory(len(buf))
    os.preadv(fd, [memory], offset)
    buf[:] = memory


def pwrite(fd: int, buf: bytearray, offset: int, _flags: int) -> None:
    """Write what is in `buf`."""
    memory = _memory(len(buf))
    memory[:] = buf
    os.pwritev(fd, [memory], offset)


def flush(fd: int, _flags: int) -> None:
    """Make what was written durable."""
    os.fdatasync(fd)


def can_multi_conn(_fd: int) -> bool:
    """Several connections are of one disk."""
    return True


def _memory(size: int) -> memoryview:
    if getattr(_own, "size", 0) < size:
        _own.memory, _own.size = memoryview(mmap.mmap(-1, size)), size
    found: memoryview = _own.memory[:size]
    return found
