"""One file of /dev/fuse in the tree of files: mounted by mount(2) as root, else by fusermount3.

The root of the mount is a regular file, and so is the mount point: one that is made for it and
removed with it. (fusermount3 mounts so, too, where the mount point is a file.)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from typing import Final

from dmcopy.block import mounts, sysfs, tools
from dmcopy.errors import BusyError, DeviceError, MissingError, UsageError

DEVICE: Final = "/dev/fuse"
PROGRAM: Final = "fusermount3"
SOURCE_PREFIX: Final = "dmcopy:"
"""What the sources of these mounts begin with, in /proc/mounts and in the ledger."""

_SECONDS: Final = 30.0
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_libc = ctypes.CDLL(None, use_errno=True)
_mount = _libc.mount
_mount.argtypes = (*(ctypes.c_char_p,) * 3, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = _libc.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def why_not() -> str:
    """Return why this user cannot mount a file here, "" if nothing is known against it."""
    if not os.path.exists(DEVICE):
        return f"there is no {DEVICE} (modprobe fuse)"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{DEVICE} may not be opened by this user"
    if os.geteuid() != 0 and tools.which(PROGRAM) is None:
        return f"without root it takes {PROGRAM} (apt-get install fuse3)"
    return ""


def make_point(point: str, source: str, otherwise: str = "say another path") -> None:
    """Make the file to mount on, by its path as the kernel will show it; `source` is in it.

    Raises UsageError where something is there already, BusyError for a mount of ours, of a server
    that may have died; `otherwise` is what to do then.
    """
    if source_of(point).startswith(SOURCE_PREFIX):
        hint = f"{otherwise}; if its server was killed: dmcopy dm reap"
        raise BusyError(point, ["a file that dmcopy serves there"], hint)
    try:
        fd = os.open(point, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(os.fsencode(source))
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise UsageError(f"{point} is there already: {otherwise}") from None
        raise DeviceError(point, "make the file to mount on", error.errno or 0) from error


def remove_point(point: str, source: str) -> None:
    """Remove the file that was mounted on; nothing happens to one without `source` in it."""
    if source_of(point):  # whose server is not to be asked: it may be this thread
        return
    with contextlib.suppress(OSError):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(point, flags), "rb") as file:
            if file.read(len(source) + 1) == os.fsencode(source):
                os.unlink(point)


def source_of(point: str) -> str:
    """Return the source of the topmost mount on `point`, "" where nothing is mounted there.

    It asks no server: the kernel's table tells.
    """
    table = mounts.parse_mountinfo(sysfs.read(f"{sysfs.LIVE.proc}/self/mountinfo"))
    return next((mount.source for mount in reversed(table) if mount.point == point), "")


def mount(point: str, source: str, *, max_bytes: int, read_only: bool) -> int:
    """Mount a file on `point`; return the descriptor by which it is served, which never blocks.

    Raises MissingError for what this machine or user lacks, DeviceError for what it refuses.
    """
    reason = why_not()
    if reason:
        raise MissingError(f"{point}: a file cannot be served: {reason}")
    if os.geteuid() == 0:
        return _mount_as_root(point, source, max_bytes=max_bytes, read_only=read_only)
    words = [f"fsname={source}", "subtype=dmcopy", f"max_read={max_bytes}"]
    if read_only:
        words.append("ro")
    return _mount_by_program(point, ",".join(words))


def _mount_as_root(point: str, source: str, *, max_bytes: int, read_only: bool) -> int:
    with contextlib.ExitStack() as undo:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        # By the open file: the name may have become a link to another file by now.
        target = os.open(point, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        options = (
            f"fd={fd},rootmode={stat.S_IFREG | 0o600:o},user_id={os.geteuid()},"
            f"group_id={os.getegid()},max_read={max_bytes}"
        )
        flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if read_only else 0)
        try:
            on = f"/proc/self/fd/{target}".encode()
            if _mount(os.fsencode(source), on, b"fuse.dmcopy", flags, options.encode()):
                raise _refused(point, "mount a file on it", ctypes.get_errno())
        finally:
            os.close(target)
        undo.pop_all()
        return fd


def _refused(point: str, action: str, number: int) -> Exception:
    if number == errno.EPERM:
        return MissingError(f"{point}: cannot {action}: it takes the capability CAP_SYS_ADMIN")
    if number == errno.ENODEV:
        return MissingError(f"{point}: cannot {action}: this kernel has no FUSE (modprobe fuse)")
    return DeviceError(point, action, number)


def _mount_by_program(point: str, options: str) -> int:
    """Have fusermount3 mount it; it sends the descriptor through a socket."""
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(_SECONDS)
        said = _run("-o", options, "--", point, socket_fd=theirs.fileno())
        theirs.close()
        try:
            _data, fds, _flags, _address = socket.recv_fds(ours, 1, 1)
        except OSError:
            fds = []
    if not fds:
        raise DeviceError(point, "mount a file on it", errno.EPERM, said)
    os.set_blocking(fds[0], False)
    os.set_inheritable(fds[0], False)
    return fds[0]


def unmount(point: str, source: str, *, lazily: bool = False) -> bool:
    """Unmount what is mounted on `point` from `source`; return whether it was there.

    `lazily`: those who have it open keep it until they close it. Raises OSError (EBUSY) for one
    that is in use.
    """
    if source_of(point) != source:
        return False
    if os.geteuid() == 0:
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazily else 0)
        if _umount2(os.fsencode(point), flags):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), point)
    else:
        said = _run("-uz" if lazily else "-u", "--", point)
        if source_of(point) == source:
            busy = said.endswith(os.strerror(errno.EBUSY))
            raise OSError(errno.EBUSY if busy else errno.EPERM, said, point)
    return True


def _run(*words: str, socket_fd: int = -1) -> str:
    """Run fusermount3; return what it said. Its exit code tells less than what is then there."""
    more = {"_FUSE_COMMFD": str(socket_fd)} if socket_fd >= 0 else {}
    passed = [socket_fd] if socket_fd >= 0 else []
    done = tools.run([PROGRAM, *words], timeout=_SECONDS, pass_fds=passed, **more)
    return done.stderr.strip()
