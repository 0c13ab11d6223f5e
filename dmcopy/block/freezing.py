"""A file system on a device that is about to be suspended: frozen, as the kernel's dm does it.

The client does that, never the server of the device: that would wait for its own answers to what
the file system still writes, where even SIGKILL does not reach.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Final

from dmcopy.block import mounts, sysfs
from dmcopy.block.devno import DevNo, split_devno
from dmcopy.errors import DeviceError, DmcopyError

_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878  # include/uapi/linux/fs.h: _IOWR('X', 119, int) and 120


def freeze(number: DevNo) -> bool:
    """Freeze the file system that is mounted from a device; return whether there is one.

    One that is frozen already stays so. One that is in another mount namespace, or on no single
    device (btrfs), is not found. Raises DeviceError.
    """
    return _call(number, _FIFREEZE, "freeze it", errno.EBUSY)


def mounted() -> set[DevNo]:
    """Return the numbers of the devices from which a file system is mounted."""
    return {mount.devno for mount in _mounts()}


def thaw(number: DevNo) -> None:
    """Thaw the file system that is mounted from a device, if there is one and it is frozen."""
    _call(number, _FITHAW, "thaw it", errno.EINVAL)


@contextlib.contextmanager
def frozen(number: DevNo | None, note: Callable[[str], object]) -> Iterator[None]:
    """Freeze what is mounted from a device; after an error, thaw it.

    The device's server is told first, by `note("freeze")`: who resumes the device then thaws it,
    also when this process is killed. See `thawed`.
    """
    if number is None or number not in mounted():
        yield
        return
    note("freeze")
    try:
        freeze(number)
        yield
    except BaseException as error:
        try:
            thawed(number, note)
        except DmcopyError as failure:
            error.add_note(f"and then, while cleaning up: {failure}")
        raise


def thawed(number: DevNo | None, note: Callable[[str], object]) -> None:
    """Thaw what is mounted from a device, and tell its server so."""
    if number is not None:
        thaw(number)
    note("thawed")


def _call(number: DevNo, code: int, action: str, already: int) -> bool:
    """Make an ioctl on the file system of a device; return whether there is one that takes it."""
    for point in [mount.point for mount in _mounts() if mount.devno == number]:
        try:
            fd = os.open(point, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if split_devno(os.fstat(fd).st_dev) != number:  # another is mounted over it
                    continue
                fcntl.ioctl(fd, code, 0)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return False
            if error.errno != already:
                raise DeviceError(point, action, error.errno or 0) from error
        return True
    return False


def _mounts() -> list[mounts.Mount]:
    return mounts.parse_mountinfo(sysfs.read(f"{sysfs.LIVE.proc}/self/mountinfo"))
