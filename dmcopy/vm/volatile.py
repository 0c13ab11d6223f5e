"""A disk with a volatile write cache, served to QEMU over NBD: what makes a power cut real.

Killing QEMU alone cuts no power: what the guest has written is in the host's page cache and stays.
So the cache is here. A write is held back in memory until the guest flushes; `crash` drops what
was not flushed, all of it or a random choice of sectors, as a disk may. Two limits: discards and
zeroing take effect immediately, and when 256 MiB are held back all of it goes to the file; both are
what a disk with a small cache might do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from dmcopy.block.opening import claim
from dmcopy.units import SECTOR_SIZE

_CACHE_SECTORS: Final = (256 << 20) // SECTOR_SIZE
_PUNCH_HOLE: Final = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

# https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
_OPTION_MAGIC: Final = b"IHAVEOPT"
_OPTION_REPLY: Final = 0x3E889045565A9
_OPTION_ABORT, _OPTION_GO = 2, 7
_REPLY_ACK, _REPLY_INFO, _REPLY_UNSUPPORTED = 1, 3, 0x80000001
_REQUEST: Final = struct.Struct("!IHHQQI")
_REQUEST_MAGIC: Final = 0x25609513
_REPLY: Final = struct.Struct("!IIQ")
_REPLY_MAGIC: Final = 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_FUA: Final = 1
_CAN: Final = 1 | 4 | 8 | 32 | 64  # flags, flush, FUA, trim, write zeroes


class VolatileFile:
    """A file behind a write cache of sectors, in bytes and whole sectors.

    The file is claimed for as long as it is open. Raises BusyError for one that is open for writing
    elsewhere.
    """

    def __init__(self, path: Path) -> None:
        self._fd = claim(str(path))
        self.size = os.fstat(self._fd).st_size
        self._cache: dict[int, bytes] = {}

    def read(self, offset: int, count: int) -> bytes:
        """Return what was written last, flushed or not."""
        data = os.pread(self._fd, count, offset)
        first = offset // SECTOR_SIZE
        wanted = range(first, first + count // SECTOR_SIZE)
        if self._cache.keys().isdisjoint(wanted):
            return data
        merged = bytearray(data)
        for sector in wanted:
            if sector in self._cache:
                at = (sector - first) * SECTOR_SIZE
                merged[at : at + SECTOR_SIZE] = self._cache[sector]
        return bytes(merged)

    def write(self, offset: int, data: bytes) -> None:
        """Hold `data` back until the next flush."""
        first = offset // SECTOR_SIZE
        for at in range(0, len(data), SECTOR_SIZE):
            self._cache[first + at // SECTOR_SIZE] = data[at : at + SECTOR_SIZE]
        if len(self._cache) > _CACHE_SECTORS:
            self.flush()

    def zero(self, offset: int, count: int) -> None:
        """Make a range zeroes immediately, giving its space back."""
        first = offset // SECTOR_SIZE
        gone = range(first, first + count // SECTOR_SIZE)
        # A range can be far larger than the cache, or the other way round.
        dropped = (
            [sector for sector in gone if sector in self._cache]
            if len(gone) < len(self._cache)
            else [sector for sector in self._cache if sector in gone]
        )
        for sector in dropped:
            del self._cache[sector]
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        if fallocate(self._fd, _PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(count)):
            os.pwrite(self._fd, bytes(count), offset)

    def flush(self) -> None:
        """Let go of everything that is held back."""
        for sector, data in self._runs(sorted(self._cache)):
            os.pwrite(self._fd, data, sector * SECTOR_SIZE)
        self._cache.clear()

    def crash(self, chooser: random.Random | None = None) -> None:
        """Lose what is held back; with `chooser`, keep each sector of it with a chance of half."""
        if chooser is not None:
            kept = [sector for sector in sorted(self._cache) if chooser.random() < 0.5]
            self._cache = {sector: self._cache[sector] for sector in kept}
            self.flush()
        self._cache.clear()

    def close(self) -> None:
        """Write out what is held back, and close the file."""
        self.flush()
        os.close(self._fd)

    def _runs(self, sectors: list[int]) -> Iterator[tuple[int, bytes]]:
        start = 0
        for at in range(1, len(sectors) + 1):
            if at == len(sectors) or sectors[at] != sectors[at - 1] + 1:
                run = sectors[start:at]
                yield run[0], b"".join([self._cache[sector] for sector in run])
                start = at


class DiskServer:
    """Serves one file to one NBD client, QEMU, from a thread of its own."""

    def __init__(self, path: Path, address: Path) -> None:
        self._disk = VolatileFile(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(address))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, name=f"disk {path.name}", daemon=True)
        self._thread.start()

    def stop(self, *, lose: bool = False, chooser: random.Random | None = None) -> None:
        """Stop serving, after QEMU has gone. With `lose` the disk loses power: see `crash`."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread if QEMU never connected
        except OSError:
            pass
        self._thread.join(60)
        self._listener.close()
        if lose:
            self._disk.crash(chooser)
        self._disk.close()

    def _serve(self) -> None:
        try:
            sock, _ = self._listener.accept()
            with sock, sock.makefile("rb") as stream:
                if self._negotiate(sock, stream):
                    while self._answer(sock, stream):
                        pass
        except (OSError, EOFError):
            return  # QEMU was killed, or never came

    def _negotiate(self, sock: socket.socket, stream: BinaryIO) -> bool:
        """The handshake: we have one export, whatever it is called."""
        sock.sendall(b"NBDMAGIC" + _OPTION_MAGIC + struct.pack("!H", 3))
        _exactly(stream, 4)
        while True:
            magic, option, length = struct.unpack("!8sII", _exactly(stream, 16))
            _exactly(stream, length)
            if magic != _OPTION_MAGIC or option == _OPTION_ABORT:
                return False
            if option != _OPTION_GO:
                sock.sendall(_option_reply(option, _REPLY_UNSUPPORTED))
                continue
            export = struct.pack("!HQH", 0, self._disk.size, _CAN)
            block_sizes = struct.pack("!HIII", 3, SECTOR_SIZE, 4096, 32 << 20)
            sock.sendall(
                _option_reply(option, _REPLY_INFO, export)
                + _option_reply(option, _REPLY_INFO, block_sizes)
                + _option_reply(option, _REPLY_ACK)
            )
            return True

    def _answer(self, sock: socket.socket, stream: BinaryIO) -> bool:
        request = _REQUEST.unpack(_exactly(stream, _REQUEST.size))
        magic, flags, command, handle, offset, count = request
        if magic != _REQUEST_MAGIC or command == _DISCONNECT:
            return False
        data = _exactly(stream, count) if command == _WRITE else b""
        error = 0
        try:
            data = self._carry_out(command, flags, offset, count, data)
        except OSError as failure:
            error, data = failure.errno or errno.EIO, b""
        sock.sendall(_REPLY.pack(_REPLY_MAGIC, error, handle) + data)
        return True

    def _carry_out(self, command: int, flags: int, offset: int, count: int, data: bytes) -> bytes:
        if command == _READ:
            return self._disk.read(offset, count)
        if command == _WRITE:
            self._disk.write(offset, data)
        elif command in (_TRIM, _WRITE_ZEROES):
            self._disk.zero(offset, count)
        elif command != _FLUSH:
            raise OSError(errno.EINVAL, "no such command")
        if command == _FLUSH or flags & _FUA:
            self._disk.flush()
        return b""


def _option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack("!QIII", _OPTION_REPLY, option, kind, len(data)) + data


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data
