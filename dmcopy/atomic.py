"""Writing a small file as a whole: at any moment there is the old content or the new, and durably.

Any name that could be made up beside `path` (path.new, path~) may be another program's file. So the
new content is written under a name that was free when it was taken, in the same folder, and renamed
to `path` at the end. After a failure nothing of it is left.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Final

from dmcopy.errors import UsageError

# What file systems answer that cannot sync a folder; then they have no need or no way.
_CANNOT_SYNC: Final = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS}


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Put `content` at `path`, which may be there already and then keeps its mode and owner.

    A symbolic link stays one: what it leads to is replaced, or made. When it returns, content and
    name are durable; when it raises, `path` is as it was, unless only its folder could not be
    synced. Raises UsageError when `path` is no regular file (a rename would put one in place of a
    pipe or of a device's node), OSError.
    """
    before = regular_file(path)
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    temporary, fd = _take_name(folder)
    try:
        try:
            if before is not None:
                _take_after(fd, before)
            _write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(folder)


def regular_file(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Return what stat(2) says of `path`, None when nothing is there.

    Raises UsageError when it is there and no regular file, OSError.
    """
    try:
        # Not lstat: where the kernel would not follow a link (fs.protected_symlinks), nor do we.
        status = os.stat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(
            f"{os.fspath(path)} is no regular file: give the name of one, or a new name"
        )
    return status


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable: a file without its name would be gone after a power cut.

    Nothing happens where that is not possible: a folder that may not be read, a file system that
    syncs no folders. Raises OSError.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a folder that may be written and not be read
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(fd)


def _take_name(folder: str) -> tuple[str, int]:
    """Make an empty file of a name that was free; return its path and a descriptor."""
    while True:
        path = os.path.join(folder, f".dmcopy-{os.urandom(8).hex()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileExistsError):
            return path, os.open(path, flags, 0o666)


def _take_after(fd: int, before: os.stat_result) -> None:
    """Give a file the owner and mode of the one that it will replace, as far as may be.

    Only root gives files away, and a file system may have neither (FAT).
    """
    with suppress(OSError):
        os.fchown(fd, before.st_uid, before.st_gid)
    with suppress(OSError):
        os.fchmod(fd, before.st_mode & 0o777)


def _write(fd: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]
