"""Opening what a path names, and the claim that comes before the first write.

A block device is claimed by opening it with O_EXCL, which the kernel refuses while a file system,
swap, dm, md or another O_EXCL opener has it, any of its partitions or the disk that it is a
partition of (bd_prepare_to_claim in block/bdev.c). A regular file is locked with flock(2).

The claim of a block device is a descriptor of its own: io_uring may hold on to one that it has
used for some time after its close, until the worker thread that did a request has let go of it and
the ring is entered again (seen on 6.12 and 6.18), and the claim with it. But io_uring's requests
outlive a process that is killed, and its claim. So what does the I/O has a lock, which a close
gives back and a kill does not; who claims the device waits for that.

Only writers claim. flock belongs to the open file and not to the process, so a reader's LOCK_SH
would refuse a copy within one file, source and destination being two opens; and a reader harms
no one, just as a mounted disk may be read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from typing import Final

from dmcopy.block import holders, syscalls, sysfs
from dmcopy.block.devno import block_devno
from dmcopy.block.holders import Holder
from dmcopy.errors import BusyError, DeviceError, UsageError

# What file systems answer that have no locks: then no other process can have locked the file
# either.
_NO_LOCKS: Final = {errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS}

_LAST_IO_SECONDS: Final = 10.0

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


def open_fd(path: str, *, write: bool) -> int:
    """Open a block device or regular file.

    Raises UsageError for what is neither, BusyError, DeviceError. Nothing is ever created.
    """
    is_block = _is_block(path)
    fd = _open(path, os.O_RDWR if write else os.O_RDONLY, write=write)
    if write and is_block and syscalls.block_is_read_only(fd):
        # open(2) lets a read-only device be opened for writing; each write would fail instead.
        os.close(fd)
        raise DeviceError(path, "write to it", errno.EROFS, "the device is set read-only")
    return fd


def claim(path: str) -> int:
    """Claim a block device or regular file for writing; closing the descriptor gives it back.

    Discards and zeroing of a block device must go through this descriptor: without its O_EXCL the
    kernel itself claims the device for them (truncate_bdev_range in block/bdev.c) and is refused.
    What a process that was killed still has under way on it is waited for. Raises BusyError also
    where the kernel uses it in a way that neither O_EXCL nor a lock shows: a loop device is made of
    it, or a regular file is swapped to. Else as `open_fd`.
    """
    is_block = _is_block(path)
    fd = _open(path, os.O_RDWR | os.O_EXCL if is_block else os.O_RDWR, write=True)
    deadline = time.monotonic() + _LAST_IO_SECONDS
    try:
        _refuse_silent_users(path, fd)
        while not _lock(path, fd):
            if time.monotonic() > deadline or not (is_block or _is_left(path)):
                raise BlockingIOError
            time.sleep(0.01)
        if is_block:
            unmark(fd)  # O_EXCL is the claim
    except BlockingIOError:
        os.close(fd)  # before the search: this process would be found, too
        raise _locked(path) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def mark(fd: int) -> None:
    """Mark a block device that was claimed as having I/O through `fd`, until `unmark`.

    The lock is a shared one, as udev's, which may look at it meanwhile.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def unmark(fd: int) -> None:
    """Give a lock back; a close leaves it to what io_uring still holds on to."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def _open(path: str, flags: int, *, write: bool) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(path, error, write=write) from error


def _is_block(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise no_such(path) from None
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
    # Mere openers do not stop an O_EXCL open: name them only when there is no other holder to name.
    strong = [holder for holder in found if holder.kind != "process"]
    return _error(path, strong or found)


def _refuse_silent_users(path: str, fd: int) -> None:
    status = os.fstat(fd)
    if number := block_devno(status):
        name = sysfs.name_of(number)
        silent = holders.loop_users(name)
    else:
        silent = [user for user in holders.file_users(path) if user.kind != "lock"]
    if silent:
        raise _error(path, silent)


def _lock(path: str, fd: int) -> bool:
    """Lock what is open; return False where it is locked. Some file systems have no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise DeviceError(path, "lock it", error.errno or 0) from error
    return True


def _is_left(path: str) -> bool:
    """Whether a file's lock is one of a process that has ended."""
    from dmcopy.ledger import identity

    locks = [one.pid for one in holders.file_users(path) if one.kind == "lock"]
    return bool(locks) and not any(pid and identity(pid) for pid in locks)


def _locked(path: str) -> BusyError:
    found = holders.who(path)
    # On overlayfs and btrfs the kernel's list of locks has other device numbers than stat(2), so
    # the lock is not found there; then the holder is the process that has the file open.
    locks = [holder for holder in found if holder.kind == "lock"]
    return _error(path, locks or found)


def _error(path: str, found: list[Holder]) -> BusyError:
    hints = [_HINTS[holder.kind] for holder in found if holder.kind in _HINTS]
    return BusyError(path, [str(holder) for holder in found], hints[0] if hints else "")


def no_such(path: str, more: str = "") -> UsageError:
    """Return the refusal of a name that nothing has; `more` says what can be done."""
    if not path:
        return UsageError("an empty name is no device or file: is a variable of the shell not set?")
    return UsageError(f"{path}: there is no such device or file{more}")
