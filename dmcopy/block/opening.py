"""Opening what a path names, and the claim that comes before the first write.

A block device is claimed by opening it with O_EXCL, which the kernel refuses while a file system,
swap, dm, md or another O_EXCL opener has it, any of its partitions or the disk that it is a
partition of (bd_prepare_to_claim in block/bdev.c). A regular file is locked with flock(2).

Only writers claim. flock belongs to the open file and not to the process, so a reader's LOCK_SH
would refuse a copy within one file, source and destination being two opens; and a reader harms
nobody, just as a mounted disk may be read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import Final

from dmcopy.block import holders, syscalls, sysfs
from dmcopy.block.holders import Holder
from dmcopy.errors import BusyError, DeviceError, UsageError

# What file systems answer that have no locks: then nobody else can have locked the file either.
_NO_LOCKS: Final = {errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS}

_HINTS: Final = {
    "mount": "unmount it first",
    "swap": "switch it off first (swapoff)",
    "dm": "remove the dm device first",
    "md": "stop the array first",
    "loop": "write to the loop device, or detach it first (losetup -d)",
}

_ODD: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def open_fd(path: str, *, write: bool, claim: bool) -> int:
    """Open a block device or regular file, claimed when it is for writing and `claim` says so.

    Raises UsageError for what is neither, BusyError, DeviceError. Nothing is ever created.
    """
    is_block = _is_block(path)
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
    if is_block and write and claim:
        flags |= os.O_EXCL
    try:
        fd = os.open(path, flags)
    except OSError as error:
        raise _cannot_open(path, error, write=write) from error
    try:
        if write and is_block and syscalls.block_is_read_only(fd):
            # open(2) lets a read-only device be opened for writing; each write would fail instead.
            raise DeviceError(path, "write to it", errno.EROFS, "the device is set read-only")
        if write and claim:
            _claim(path, fd)
    except BlockingIOError:
        os.close(fd)  # before the search: this process would be found, too
        raise _locked(path) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_block(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such device or file") from None
    except OSError as error:
        raise DeviceError(path, "open it", error.errno or 0) from error
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        kind = _ODD.get(stat.S_IFMT(mode), "something else")
        raise UsageError(f"{path} is {kind}: give a block device or a regular file")
    return stat.S_ISBLK(mode)


def _cannot_open(path: str, error: OSError, *, write: bool) -> BusyError | DeviceError:
    if error.errno == errno.EBUSY:
        return _busy(path)
    action = "open it for writing" if write else "open it"
    hint = ""
    if error.errno == errno.EACCES:
        hint = "run as root, or join the group that it belongs to"
    elif error.errno == errno.EPERM:
        hint = "a container's device rules or a file attribute forbid it"
    return DeviceError(path, action, error.errno or 0, hint)


def _busy(path: str) -> BusyError:
    found = holders.who(path)
    # Mere openers do not stop an O_EXCL open: name them only when there is nobody else to name.
    strong = [holder for holder in found if holder.kind != "process"]
    return _error(path, strong or found)


def _claim(path: str, fd: int) -> None:
    """Finish the claim of what `fd`, opened for writing, is; a block device already has O_EXCL.

    Raises BusyError where the kernel uses it in a way that neither O_EXCL nor a lock shows: a loop
    device is made of it, or a regular file is swapped to. Closing `fd` gives the claim back.
    """
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        name = sysfs.name_of((os.major(status.st_rdev), os.minor(status.st_rdev)))
        users = holders.device_users(name)
        silent = [user for user in users if user.kind == "loop"]
    else:
        silent = [user for user in holders.file_users(path) if user.kind != "lock"]
    if silent:
        raise _error(path, silent)
    if stat.S_ISREG(status.st_mode):
        _lock(path, fd)


def _lock(path: str, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise DeviceError(path, "lock it", error.errno or 0) from error


def _locked(path: str) -> BusyError:
    found = holders.who(path)
    # On overlayfs and btrfs the kernel's list of locks has other device numbers than stat(2), so
    # the lock is not found there; then whoever has the file open is the one.
    locks = [holder for holder in found if holder.kind == "lock"]
    return _error(path, locks or found)


def _error(path: str, found: list[Holder]) -> BusyError:
    hints = [_HINTS[holder.kind] for holder in found if holder.kind in _HINTS]
    return BusyError(path, [str(holder) for holder in found], hints[0] if hints else "")
