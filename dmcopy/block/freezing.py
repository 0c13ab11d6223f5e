"""A file system on a device that is about to be suspended: frozen, as the kernel's dm does it.

The client does that, never the server of the device: that would wait for its own answers to what
the file system still writes, where even SIGKILL does not reach.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from typing import Final

from dmcopy.block import mounts, sysfs
from dmcopy.block.devno import DevNo, devno_text, split_devno
from dmcopy.errors import DeviceError, DmcopyError

_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878  # include/uapi/linux/fs.h: _IOWR('X', 119, int) and 120

Tell = Callable[[str], contextlib.AbstractContextManager[object]]
"""Tells a device's server what is done to a file system on it, until the block ends."""


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


def thaw_elsewhere(number: DevNo, timeout: float) -> None:
    """Thaw it in a process of its own, for the server of the device, which can be killed then.

    What is mounted in another mount namespace is not found. Raises DmcopyError.
    """
    from dmcopy.block import tools

    words = [sys.executable, "-m", "dmcopy.block.freezing", *map(str, number)]
    done = tools.run(words, timeout=timeout)
    if done.returncode:
        raise DmcopyError(f"{devno_text(number)} could not be thawed: {done.stderr.strip()}")


@contextlib.contextmanager
def frozen(number: DevNo | None, tell: Tell) -> Iterator[None]:
    """Freeze what is mounted from a device, for it to be suspended in the block; see `thawed`.

    After an error it thaws. The device's server is told first, by `tell("freeze")`: what resumes
    the device then thaws it. Where this process is killed before the device is suspended, the
    server does.
    """
    if number is None or number not in mounted():
        yield
        return
    with tell("freeze"):
        try:
            freeze(number)
            yield
        except BaseException as error:
            try:
                thawed(number, tell)
            except DmcopyError as failure:
                error.add_note(f"and then, while cleaning up: {failure}")
            raise


def thawed(number: DevNo | None, tell: Tell) -> None:
    """Thaw what is mounted from a device, and tell its server so."""
    if number is not None:
        thaw(number)
    with tell("thawed"):
        pass


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


if __name__ == "__main__":
    thaw((int(sys.argv[1]), int(sys.argv[2])))
