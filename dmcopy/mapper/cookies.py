"""Cookies: the SysV semaphores with which udev's rules say that they are done with a device.

dmsetup makes one for each command, and when it is killed, the semaphore stays for ever: no process
can tell whose it was. So here the semaphore is made first, under a key that is in the ledger, and
dmsetup is given the key.

Rules: libdm/libdm-common.c of lvm2 2.03.16. The key is 0x0d4d and 16 random bits; the value starts
at 1; each task adds 1, which the rules take away again; the process that waits takes the first 1
away, waits until it is 0, and removes the semaphore.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dmcopy.errors import DeadlineError, DeviceError
from dmcopy.ledger import Ledger, LedgerEntry

_MAGIC: Final = 0x0D4D
_IPC_CREAT, _IPC_EXCL, _IPC_NOWAIT, _IPC_RMID, _SETVAL = 0o1000, 0o2000, 0o4000, 0, 16
_SLICE_SECONDS: Final = 0.2
_MADE_SECONDS: Final = (-2, 10)  # between the ledger's line and the semaphore's last change
_TABLE: Final = Path("/proc/sysvipc/sem")


class _Operation(ctypes.Structure):
    _fields_ = (("number", ctypes.c_ushort), ("change", ctypes.c_short), ("flags", ctypes.c_short))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


@dataclass(frozen=True, slots=True)
class Cookie:
    """A semaphore that udev's rules count down. `option` is what dmsetup is told."""

    key: int
    semaphore: int

    @property
    def option(self) -> str:
        """The key as dmsetup takes and prints it."""
        return key_text(self.key)

    def wait(self, timeout: float) -> None:
        """Wait until udev's rules are done. Raises DeadlineError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        self._change(-1, _IPC_NOWAIT, 0)
        while not self._change(0, 0, _SLICE_SECONDS):
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"udev was not done with the device within {timeout:g} s: its rules wait for "
                    "I/O on a suspended or failed device, or udevd does not answer"
                )

    def remove(self) -> None:
        """Remove the semaphore; one that is gone already is left alone."""
        _libc().semctl(self.semaphore, 0, _IPC_RMID)

    def _change(self, change: int, flags: int, seconds: float) -> bool:
        """Change the value, or with 0 wait until it is 0; return whether that was possible."""
        operation = _Operation(0, change, flags)
        limit = _Timespec(0, int(seconds * 1e9))
        if _libc().semtimedop(self.semaphore, ctypes.byref(operation), 1, ctypes.byref(limit)) == 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.EIDRM, errno.EINVAL):
            return True  # it has been removed: no process will count it down any more
        if number in (errno.EAGAIN, errno.EINTR):
            return False
        raise DeviceError(self.option, "wait for udev's cookie", number)


@contextlib.contextmanager
def cookie(ledger: Ledger) -> Iterator[Cookie | None]:
    """Make a cookie for the length of a `with` block, noted in `ledger` before it is there.

    None where there are no semaphores to be had: dmsetup then does what it can.
    """
    key = _MAGIC << 16 | (int.from_bytes(os.urandom(2)) or 1)
    entry = ledger.add("cookie", key_text(key))
    made = None
    try:
        made = _make(key)
        yield made
    finally:
        if made is not None:
            made.remove()
        ledger.cancel(entry)


def left_behind(entry: LedgerEntry) -> Cookie | None:
    """Return the cookie of an entry of the ledger if it is there and is the one that was noted."""
    for key, semaphore, owner, changed in _semaphores():
        early, late = (entry.made + seconds for seconds in _MADE_SECONDS)
        if key_text(key) == entry.name and owner == os.geteuid() and early <= changed <= late:
            return Cookie(key, semaphore)
    return None


def present() -> list[Cookie]:
    return [Cookie(key, semaphore) for key, semaphore, *_ in _semaphores() if key >> 16 == _MAGIC]


def key_text(key: int) -> str:
    """Return a key as dmsetup prints it."""
    return f"0x{key:08x}"


def _make(key: int) -> Cookie | None:
    libc = _libc()
    semaphore = libc.semget(key, 1, 0o600 | _IPC_CREAT | _IPC_EXCL)
    if semaphore < 0:
        return None
    libc.semctl(semaphore, 0, _SETVAL, ctypes.c_int(1))
    return Cookie(key, semaphore)


def _semaphores() -> Iterator[tuple[int, int, int, int]]:
    """Yield the key, the id, the owner and the time of the last change of each semaphore."""
    try:
        lines = _TABLE.read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        key, semaphore, _mode, _count, uid, _gid, _cuid, _cgid, _used, changed = line.split()
        yield int(key) & 0xFFFFFFFF, int(semaphore), int(uid), int(changed)


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
