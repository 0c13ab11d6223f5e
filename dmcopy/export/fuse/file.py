"""A device as one file: the requests of /dev/fuse, answered on the reactor, many in flight.

The file is as a block device: it can be read and written at any byte, never grows or shrinks, and
is not cached: what is written is on the device. Opening it with O_TRUNC changes nothing, so that
`cp` and `dd` write to it as they would to a disk.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from dmcopy.export.fuse import protocol
from dmcopy.export.fuse.bytewise import Bytewise
from dmcopy.export.fuse.protocol import HEAD_BYTES, HEADER, IO, REPLY, Opcode
from dmcopy.export.fuse.turns import Turns
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import FLUSH, READ, WRITE, Io, Memory
from dmcopy.targets.work import Routine, proceed
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

MAX_BYTES: Final = 256 << 10
"""What one request reads or writes at most: larger ones come in several, side by side."""
DEPTH: Final = 64

_MAX_BLOCK: Final = 64 << 10  # BLK_MAX_BLOCK_SIZE in include/linux/blkdev.h, 6.15
_BATCH: Final = 32  # requests taken before anything else on the reactor has its turn
_READ, _WRITE = int(Opcode.READ), int(Opcode.WRITE)

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # FALLOC_FL_*
_CLEARING: Final = {
    _PUNCH_HOLE | _KEEP_SIZE: True,
    _ZERO_RANGE: False,
    _ZERO_RANGE | _KEEP_SIZE: False,
}
"""Modes of fallocate(2) that make a range read as zeroes; whether by discarding it."""


class FuseRequests:
    """Answers what comes from `fd`, a descriptor of /dev/fuse, until `close` or its end.

    `gone` is called when the kernel ends it: at umount(2), or when it is aborted. A request
    has `MAX_BYTES` of data at most, and there are never more than `DEPTH` under way: the kernel
    keeps the others. `under_way`: how many are.
    """

    def __init__(
        self, reactor: Reactor, device: Device, fd: int, gone: Callable[[], object]
    ) -> None:
        stride = MAX_BYTES + 2 * _MAX_BLOCK  # one that is within blocks has two more
        self._reactor = reactor
        self._device = device
        self._fd = fd
        self._gone = gone
        self._memory = Memory(DEPTH * stride // PAGE_SIZE)
        self._head = bytearray(HEAD_BYTES)
        self._rooms = [slot * stride for slot in range(DEPTH)]
        self._views = {room: self._memory.view[room : room + stride] for room in self._rooms}
        self._within_block = 0
        self._told = device.sectors
        self._paused = False
        self.under_way = 0
        self._turns = Turns(reactor.submit)
        self._bytewise = Bytewise(reactor, device, self._memory, MAX_BYTES)
        self._changed = int(time.time())
        self._was_read, self._was_written = self._read_done, self._write_done  # bound once
        self._others: dict[int, Callable[[int, bytes], bytes | None]] = {
            Opcode.INIT: self._init,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.OPEN: self._open,
            Opcode.RELEASE: lambda _unique, _body: b"",
            Opcode.DESTROY: lambda _unique, _body: b"",
            Opcode.STATFS: self._statfs,
            Opcode.FSYNC: self._fsync,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.IOCTL: partial(_refuse, errno.ENOTTY),
            Opcode.FORGET: lambda _unique, _body: None,
            Opcode.BATCH_FORGET: lambda _unique, _body: None,
        }
        reactor.watch(fd, self._readable)

    @property
    def size_bytes(self) -> int:
        """The size of the file now: that of the device."""
        return self._device.sectors << SECTOR_SHIFT

    def look(self) -> None:
        """Have the kernel ask for the size anew, if it is another."""
        if self._device.sectors != self._told:
            self._told = self._device.sectors
            self._send(protocol.resized())

    def close(self) -> None:
        """Answer nothing any more: callers get ECONNABORTED. The device is released later."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if not self._paused:
                self._reactor.unwatch(fd)
            os.close(fd)

    def release(self) -> None:
        """Give the memory back, once it is idle."""
        self._views.clear()
        self._memory.close()

    def _readable(self, _events: int) -> None:
        self._within_block = self._device.logical_block_size - 1  # another table, another size
        if self._device.sectors != self._told:
            self.look()
        # Who asks for one thing at a time has nothing more to say: to read again would be in vain.
        for _ in range(_BATCH if self.under_way else 1):
            if self._fd < 0:
                return
            if not self._rooms:
                self._paused = True
                self._reactor.unwatch(self._fd)
                return
            room = self._rooms[-1]
            try:
                size = os.readv(self._fd, (self._head, self._views[room]))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # it was taken back meanwhile
                    continue
                size = 0
            if size < HEADER.size:  # the kernel has nothing more to say
                self.close()
                self._gone()
                return
            _length, opcode, unique, *_ = HEADER.unpack_from(self._head)
            try:
                if opcode == _READ:
                    self._read(unique)
                elif opcode == _WRITE:
                    self._write(unique)
                else:
                    self._other(opcode, unique, size)
            except OSError as error:
                self._send(protocol.error_reply(unique, error.errno or errno.EIO))
            except Exception as error:  # the caller must not wait for ever
                self._send(protocol.error_reply(unique, errno.EIO))
                self._reactor.report(error)

    def _take(self) -> int:
        """Take the room into which the request was read."""
        self.under_way += 1
        return self._rooms.pop()

    def _give(self, room: int) -> None:
        self.under_way -= 1
        self._rooms.append(room)
        if self._paused and self._fd >= 0:
            self._paused = False
            self._reactor.watch(self._fd, self._readable)

    def _read(self, unique: int) -> None:
        _handle, start, size, *_ = IO.unpack_from(self._head, HEADER.size)
        end = min(start + size, self._device.sectors << SECTOR_SHIFT)
        if start >= end:
            self._send(protocol.reply(unique))
            return
        within = self._within_block
        first, last = start & ~within, end + within & ~within
        region = IoRegion(self._device, first >> SECTOR_SHIFT, last - first >> SECTOR_SHIFT)
        room = self._take()
        extents = ((room, last - first),)
        context = (unique, room, start - first, end - first)
        self._reactor.submit(
            Io(READ, region, self._memory, extents, self._was_read, context=context)
        )

    def _read_done(self, request: Io) -> None:
        unique, room, start, end = request.context
        if request.error:
            self._send(protocol.error_reply(unique, request.error))
        else:
            head = REPLY.pack(REPLY.size + end - start, 0, unique)
            self._send(head, self._views[room][start:end])
        self._give(room)

    def _write(self, unique: int) -> None:
        _handle, start, size, _flags, _owner, flags, _ = IO.unpack_from(self._head, HEADER.size)
        end = min(start + size, self._device.sectors << SECTOR_SHIFT)
        if self._device.read_only:
            raise OSError(errno.EROFS, "read-only")
        if start >= end:
            raise OSError(errno.ENOSPC, "past the end")
        # The kernel asks for no FSYNC after such a write, where it goes past the page cache.
        fua = flags & os.O_DSYNC != 0
        size = end - start
        room = self._take()
        if (start | end) & self._within_block:
            data = self._views[room][:size].tobytes()
            body = protocol.write_reply(size)
            self._alone(unique, room, self._bytewise.overwrite(room, start, data, fua=fua), body)
            return
        region = IoRegion(self._device, start >> SECTOR_SHIFT, size >> SECTOR_SHIFT)
        extents, context = ((room, size),), (unique, room, size)
        self._turns.write(
            Io(WRITE, region, self._memory, extents, self._was_written, fua=fua, context=context)
        )

    def _write_done(self, request: Io) -> None:
        unique, room, size = request.context
        if request.error:
            self._send(protocol.error_reply(unique, request.error))
        else:
            self._send(protocol.reply(unique, protocol.write_reply(size)))
        self._give(room)
        self._turns.end()

    def _alone(self, unique: int, room: int, work: Routine[int], body: bytes = b"") -> None:
        """Do `work` when no write is under way, then answer with `body` or its error."""

        def ended(error: int) -> None:
            answer = protocol.error_reply(unique, error) if error else protocol.reply(unique, body)
            self._send(answer)
            self._give(room)
            self._turns.end()

        def failed(error: Exception) -> None:
            ended(errno.EIO)
            raise error

        self._turns.alone(partial(proceed, work, ended, failed))

    def _other(self, opcode: int, unique: int, size: int) -> None:
        handle = self._others.get(opcode)
        if handle is None:  # of most, the kernel then asks no more
            raise OSError(errno.ENOSYS, "no such request")
        message = self._head + self._views[self._rooms[-1]][: max(0, size - HEAD_BYTES)]
        body = handle(unique, bytes(message[HEADER.size : size]))
        if body is not None:
            self._send(protocol.reply(unique, body))

    def _init(self, _unique: int, body: bytes) -> bytes:
        offer = protocol.parse_init(body)
        if (offer.major, offer.minor) < (protocol.MAJOR, protocol.OLDEST):
            raise OSError(errno.EPROTO, "a kernel before Linux 4.20")
        return protocol.init_reply(offer, max_bytes=MAX_BYTES, depth=DEPTH)

    def _getattr(self, _unique: int, _body: bytes) -> bytes:
        return protocol.attr_reply(
            self.size_bytes,
            mode=0o400 if self._device.read_only else 0o600,
            owner=(os.geteuid(), os.getegid()),
            seconds=self._changed,
        )

    def _setattr(self, unique: int, body: bytes) -> bytes:
        """Refuse what would change it; times are not kept, and O_TRUNC is as on a disk."""
        which, size = protocol.parse_setattr(body)
        if which & (protocol.FATTR_MODE | protocol.FATTR_UID | protocol.FATTR_GID):
            raise OSError(errno.EPERM, "not the mode, nor the owner")
        if which & protocol.FATTR_SIZE:
            opening = not size and not which & protocol.FATTR_FH
            if size != self.size_bytes and not opening:
                raise OSError(errno.EINVAL, "not the size")
        return self._getattr(unique, body)

    def _open(self, _unique: int, body: bytes) -> bytes:
        if self._device.read_only and protocol.parse_open(body) & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        return protocol.open_reply()

    def _statfs(self, _unique: int, _body: bytes) -> bytes:
        return protocol.statfs_reply(self.size_bytes)

    def _fsync(self, unique: int, _body: bytes) -> None:
        self.under_way += 1
        region = IoRegion(self._device, 0, 0)
        self._reactor.submit(Io(FLUSH, region, notify=self._flushed, context=unique))

    def _flushed(self, request: Io) -> None:
        unique: Any = request.context
        self.under_way -= 1
        error = request.error
        self._send(protocol.error_reply(unique, error) if error else protocol.reply(unique))

    def _fallocate(self, unique: int, body: bytes) -> bytes | None:
        start, length, mode = protocol.parse_fallocate(body)
        end = start + length
        if self._device.read_only:
            raise OSError(errno.EROFS, "read-only")
        if not mode & _KEEP_SIZE and end > self.size_bytes:
            raise OSError(errno.ENOSPC, "it cannot grow")
        if mode & ~_KEEP_SIZE == 0:  # what is there is allocated already
            return b""
        if mode not in _CLEARING:
            raise OSError(errno.EOPNOTSUPP, "no such mode")
        end = min(end, self.size_bytes)
        if start >= end:
            return b""
        room = self._take()
        clearing = self._bytewise.clear(room, start, end, discard=_CLEARING[mode])
        self._alone(unique, room, clearing)
        return None

    def _send(self, *parts: bytes | memoryview) -> None:
        if self._fd < 0:
            return
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            # ENOENT: the process that waited was killed. Others come when it is unmounted or
            # aborted, which the next read tells.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED):
                raise


def _refuse(number: int, _unique: int, _body: bytes) -> bytes:
    raise OSError(number, os.strerror(number))
