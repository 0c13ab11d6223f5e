"""An io_uring: raw system calls through ctypes, its rings through mmap. Nothing but the stdlib.

Kernel facts used here (include/uapi/linux/io_uring.h, 6.1): setup, enter and register are system
calls 425, 426 and 427 everywhere; IORING_FEAT_SINGLE_MMAP since 5.4, IORING_ENTER_EXT_ARG since
5.11, IOSQE_CQE_SKIP_SUCCESS since 5.17, SINGLE_ISSUER since 6.0, DEFER_TASKRUN since 6.1.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from array import array
from typing import Any, Final

from dmcopy.errors import is_passing

OP_NOP: Final = 0
OP_READV: Final = 1
OP_WRITEV: Final = 2
OP_FSYNC: Final = 3
OP_READ_FIXED: Final = 4
OP_WRITE_FIXED: Final = 5
OP_POLL_ADD: Final = 6
OP_READ: Final = 22
OP_WRITE: Final = 23
OP_URING_CMD: Final = 46

LINK: Final = 1 << 2
SKIP_SUCCESS: Final = 1 << 6

FSYNC_DATASYNC: Final = 1
RWF_DSYNC: Final = 2

SQE: Final = struct.Struct("<BBHiQQIIQ24x")
SQE_SIZE: Final = 64
# Two neighbouring entries together: a read linked to a write. The first word of an entry is
# opcode | flags << 8 | fd << 32; then offset, address, length, user_data.
PAIR: Final = struct.Struct("<QQQQQ24xQQQQQ24x")
# The head of a command to a driver: opcode, fd, the driver's own operation, user_data. Behind it
# its argument, of 16 bytes in an entry of 64, of 80 in a wide one.
COMMAND: Final = struct.Struct("<B3xiI20xQ8x")

_SETUP, _ENTER, _REGISTER = 425, 426, 427
_REGISTER_BUFFERS, _UNREGISTER_BUFFERS, _REGISTER_EVENTFD = 0, 1, 4
_ENTER_GETEVENTS, _ENTER_EXT_ARG = 1, 8
_FEAT_SINGLE_MMAP, _FEAT_EXT_ARG = 1, 1 << 8
_SINGLE_ISSUER_DEFER_TASKRUN = 1 << 12 | 1 << 13
_SQE128 = 1 << 10
_OFF_SQES = 0x10000000
_ERRORS_OF_A_WAIT: Final = frozenset({errno.EINTR, errno.ETIME, errno.EAGAIN, errno.EBUSY})

_PARAMS: Final = struct.Struct("<5I2I3I 8I2I 8I2I")
_GETEVENTS_ARG: Final = struct.Struct("<QIIQ")
_TIMESPEC: Final = struct.Struct("<qq")
_VECTOR: Final = struct.Struct("<QQ")

_libc = ctypes.CDLL(None, use_errno=True)
# No argtypes: with them, ctypes needs three times as long for each call.
_syscall: Any = _libc.syscall


class Ring:
    """One ring. Entries of the submission queue are written in place and submitted by index.

    `entries` is the size of the submission queue (a power of two); the completion queue has twice
    that. `wide`: an entry has 128 bytes, as some commands to drivers need. Raises OSError where the
    kernel refuses.
    """

    def __init__(self, entries: int, *, wide: bool = False) -> None:
        self.deferred = True
        self._sqe_size = SQE_SIZE << wide
        flags = _SQE128 if wide else 0
        try:
            self._setup(entries, flags | _SINGLE_ISSUER_DEFER_TASKRUN)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.deferred = False  # a kernel before 6.1
            self._setup(entries, flags)
        self._timespec = ctypes.create_string_buffer(16)
        argument = _GETEVENTS_ARG.pack(0, 0, 0, ctypes.addressof(self._timespec))
        self._argument = ctypes.create_string_buffer(argument, len(argument))
        self._argument_address = ctypes.c_void_p(ctypes.addressof(self._argument))
        # The seventh argument goes over the stack, where a plain int leaves half a word undefined.
        self._argument_size = ctypes.c_size_t(len(argument))

    def _setup(self, entries: int, flags: int) -> None:
        params = ctypes.create_string_buffer(_PARAMS.pack(0, 0, flags, *[0] * 27), _PARAMS.size)
        fd = _syscall(_SETUP, entries, params)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        self.fd: int = fd
        try:
            self._map_rings(params)
        except BaseException:
            os.close(fd)
            raise

    def _map_rings(self, params: Any) -> None:
        fd = self.fd
        values = _PARAMS.unpack(params)
        self.entries, cq_entries, features = values[0], values[1], values[5]
        if features & (_FEAT_SINGLE_MMAP | _FEAT_EXT_ARG) != _FEAT_SINGLE_MMAP | _FEAT_EXT_ARG:
            raise OSError(errno.ENOSYS, "this kernel's io_uring is older than 5.11")
        sq = values[10:17]  # head, tail, ring_mask, ring_entries, flags, dropped, array
        cq = values[20:26]  # head, tail, ring_mask, ring_entries, overflow, cqes
        size = max(sq[6] + self.entries * 4, cq[5] + cq_entries * 16)
        size += -size % 8
        shared = mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._map = mmap.mmap(fd, size, shared)
        self.sqes = mmap.mmap(fd, self.entries * self._sqe_size, shared, offset=_OFF_SQES)
        view = memoryview(self._map)
        self._words = view.cast("I")
        self._sq_tail, self._cq_head, self._cq_tail = sq[1] // 4, cq[0] // 4, cq[1] // 4
        self._sq_array = self._words[sq[6] // 4 : sq[6] // 4 + self.entries]
        completions = view[cq[5] : cq[5] + cq_entries * 16]
        self._cqes = completions.cast("Q")
        self._views = (self._cqes, completions, self._sq_array, self._words, view)
        self._sq_mask, self._cq_mask = self.entries - 1, cq_entries - 1
        self._tail = self._words[self._sq_tail]

    def queue(self, indices: list[int]) -> None:
        """Put entries, by index, at the end of the submission queue; it must have room for them."""
        mask = self._sq_mask
        start, count = self._tail & mask, len(indices)
        if start + count <= self.entries:
            self._sq_array[start : start + count] = array("I", indices)
        else:
            cut = self.entries - start
            self._sq_array[start:] = array("I", indices[:cut])
            self._sq_array[: count - cut] = array("I", indices[cut:])
        self._tail = (self._tail + count) & 0xFFFFFFFF
        self._words[self._sq_tail] = self._tail

    def enter(self, submit: int, wait: int, timeout: float | None = None) -> int:
        """Submit `submit` entries, wait for `wait` completions or `timeout` seconds.

        Returns how many entries the kernel took (0 when a signal or the timeout ended the wait:
        then ask again with what is left). Raises OSError for what is a mistake of ours.
        """
        if timeout is None or not wait:
            flags = _ENTER_GETEVENTS if wait or self.deferred else 0
            taken: int = _syscall(_ENTER, self.fd, submit, wait, flags, None, 0)
        else:
            _TIMESPEC.pack_into(self._timespec, 0, int(timeout), int(timeout % 1 * 1e9))
            flags = _ENTER_GETEVENTS | _ENTER_EXT_ARG
            taken = _syscall(
                _ENTER, self.fd, submit, wait, flags, self._argument_address, self._argument_size
            )
        if taken >= 0:
            return taken
        number = ctypes.get_errno()
        if number in _ERRORS_OF_A_WAIT:
            return 0
        raise OSError(number, f"io_uring_enter: {os.strerror(number)}")

    def reap(self) -> list[int]:
        """Return the completions as a flat list: user_data, result, user_data, result, …

        A result is the low 32 bits as the kernel wrote them (see `signed`), flags above.
        """
        words = self._words
        head, tail = words[self._cq_head], words[self._cq_tail]
        count = (tail - head) & 0xFFFFFFFF
        if not count:
            return []
        start, size = head & self._cq_mask, self._cq_mask + 1
        if start + count <= size:
            found = self._cqes[2 * start : 2 * (start + count)].tolist()
        else:
            found = (
                self._cqes[2 * start :].tolist() + self._cqes[: 2 * (start + count - size)].tolist()
            )
        words[self._cq_head] = tail
        return found

    def register_eventfd(self, fd: int) -> None:
        """Have every completion ring an eventfd: poll(2) on a deferred ring itself sees nothing."""
        if _syscall(_REGISTER, self.fd, _REGISTER_EVENTFD, ctypes.byref(ctypes.c_int(fd)), 1) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_register")

    def register_buffer(self, address: int, length: int) -> bool:
        """Pin memory for OP_READ_FIXED and OP_WRITE_FIXED: the ring's only buffer, of index 0.

        The kernel then need not look its pages up for each request. Returns whether that worked:
        without CAP_IPC_LOCK, what is pinned counts against RLIMIT_MEMLOCK.
        """
        vector = _VECTOR.pack(address, length)
        return bool(_syscall(_REGISTER, self.fd, _REGISTER_BUFFERS, vector, 1) == 0)

    def unregister_buffer(self) -> None:
        """Let go of what was registered; no request may still use it."""
        _syscall(_REGISTER, self.fd, _UNREGISTER_BUFFERS, None, 0)

    def close(self) -> None:
        """Close the ring; the kernel cancels what is still in it.

        A mapping would keep it, and with it what its worker threads have not let go of: a file
        that was closed would stay open, and a device in use.
        """
        try:
            self.enter(0, 0)  # what workers have let go of by now is let go of here
        except OSError:
            pass  # another thread closes it, which may not enter it: the kernel does it in time
        for view in self._views:
            view.release()
        self._map.close()
        self.sqes.close()
        os.close(self.fd)


def signed(result: int) -> int:
    """Return a completion's result as the signed number that it is: a length or minus an errno."""
    result &= 0xFFFFFFFF
    return result - (1 << 32) if result >> 31 else result


def probe_ring() -> str:
    """Return why io_uring cannot be used here, or '' when a ring did what we rely on.

    Raises OSError where a limit of the system was met, which says nothing of io_uring.
    """
    if os.uname().machine != "x86_64":
        return "the ring needs memory barriers that Python does not have outside x86-64"
    try:
        ring = Ring(8)
    except OSError as error:
        if is_passing(error):
            raise
        return f"the kernel refuses io_uring ({error.strerror})"
    try:
        return _try_failed_link(ring)
    finally:
        ring.close()


def _try_failed_link(ring: Ring) -> str:
    """Check that a failed read with a linked write behind it leaves exactly one completion.

    IOSQE_CQE_SKIP_SUCCESS on the head of a link makes the kernel drop the ECANCELED of what follows
    (io_uring.c: REQ_F_SKIP_LINK_CQES, 5.17); a slot that is freed by it must not hear of it again.
    """
    SQE.pack_into(ring.sqes, 0, OP_READ, LINK | SKIP_SUCCESS, 0, -1, 0, 0, 0, 0, 1)
    SQE.pack_into(ring.sqes, SQE_SIZE, OP_WRITE, 0, 0, -1, 0, 0, 0, 0, 2)
    SQE.pack_into(ring.sqes, 2 * SQE_SIZE, OP_NOP, 0, 0, -1, 0, 0, 0, 0, 3)
    ring.queue([0, 1, 2])
    ring.enter(3, 2, 1.0)
    tags = ring.reap()[::2]
    if tags != [1, 3]:
        return f"a failed link completed as {tags}: io_uring is older than 5.17"
    return ""
