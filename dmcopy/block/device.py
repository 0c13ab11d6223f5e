"""One open block device or regular file: its sizes, and whole operations on ranges of sectors."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final, Self

from dmcopy.block import geometry, opening, syscalls, transfer
from dmcopy.block.processes import Identity, identity_of
from dmcopy.block.write_cache import WriteCache
from dmcopy.closing import Closing
from dmcopy.errors import ClosedError, DeviceError, UsageError
from dmcopy.units import SECTOR_SHIFT

# What says "I cannot do that here", as opposed to "I tried, and it failed".
_REFUSED: Final = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL}


class BlockDevice(Closing):
    """An open block device or regular file, by `BlockDevice.open`; a context manager.

    Every position and length is in sectors of 512 bytes. The operations release the GIL and may be
    called from several threads side by side; none touches anything outside the range that it is
    given.

    Attributes:
        path: as it was given.
        sectors: the size in whole sectors; `size_bytes` is exact.
        logical_block_size, physical_block_size: bytes. Ranges are multiples of the first.
        read_only: this handle cannot write.
        is_block: a block device, not a regular file.
        direct: I/O goes past the page cache (O_DIRECT); where not, `direct_reason` says why.
        identity: the same for two handles on the same device or file.
    """

    path: str
    sectors: int
    size_bytes: int
    logical_block_size: int
    physical_block_size: int
    read_only: bool
    is_block: bool
    direct: bool
    direct_reason: str
    identity: Identity

    def __init__(
        self, path: str, fd: int, *, read_only: bool, direct: bool | None, claim: int = -1
    ) -> None:
        self._fd = fd
        self._claim = claim
        self.path = path
        self.read_only = read_only
        status = os.fstat(fd)
        self.is_block = stat.S_ISBLK(status.st_mode)
        self.identity = identity_of(status)
        shape = geometry.measure(path, fd, is_block=self.is_block, direct=direct)
        self.size_bytes = shape.size_bytes
        self.sectors = shape.size_bytes >> SECTOR_SHIFT
        self.logical_block_size = shape.logical_block_size
        self.physical_block_size = shape.physical_block_size
        self.direct = shape.direct
        self.direct_reason = shape.direct_reason
        self._write_cache = WriteCache(status.st_rdev)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        write: bool = False,
        direct: bool | None = None,
        claim: bool = True,
    ) -> Self:
        """Open what is at `path`, which must exist: nothing is ever created.

        To write, a block device is claimed with O_EXCL and a regular file locked, unless `claim` is
        false. `direct` None uses O_DIRECT where it serves, True insists on it, False does without.
        Raises BusyError naming the holder, UsageError, DeviceError.
        """
        name = os.fspath(path)
        with contextlib.ExitStack() as opened:
            claimed = opening.claim(name) if write and claim else -1
            opened.callback(_close, claimed)
            fd = claimed
            if fd < 0 or stat.S_ISBLK(os.fstat(fd).st_mode):
                fd = opening.open_fd(name, write=write)
                opened.callback(_close, fd)
                if claimed >= 0:
                    opening.mark(fd)
            try:
                device = cls(name, fd, read_only=not write, direct=direct, claim=claimed)
            except OSError as error:  # the device went away meanwhile
                raise DeviceError(name, "read its size", error.errno or 0) from error
            opened.pop_all()
            return device

    @property
    def write_through(self) -> bool:
        """Whether what was written is durable without a flush: a disk says that it caches nothing.

        That says nothing of the page cache: I/O must go past it. A file never is that.
        """
        return self.direct and self.is_block and self._write_cache.is_none()

    def look(self) -> None:
        """Read its size anew: a file or a disk may have grown since."""
        self.size_bytes = syscalls.byte_size(self.fileno())
        self.sectors = self.size_bytes >> SECTOR_SHIFT

    def fileno(self) -> int:
        """Return the open file descriptor. Raises ClosedError."""
        if self._fd < 0:
            raise ClosedError(f"{self.path}: this handle is closed")
        return self._fd

    def close(self) -> None:
        """Close the device, which also gives the claim back. Closing twice does nothing."""
        fd, self._fd = self._fd, -1
        claim, self._claim = self._claim, -1
        self._write_cache.close()
        if fd >= 0:
            opening.unmark(fd)
        _close(fd)
        if claim != fd:
            _close(claim)

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        how = "read-only" if self.read_only else "writable"
        cache = "direct" if self.direct else "buffered"
        return f"<BlockDevice {self.path} {self.sectors} sectors {how} {cache}>"

    def pread(self, sector: int, count: int) -> bytes:
        """Return the content of `count` sectors from `sector`. Raises UsageError, DeviceError."""
        self._check(sector, count)
        try:
            return transfer.read_whole(self.fileno(), *_in_bytes(sector, count))
        except OSError as error:
            raise self._failed("read", sector, count, error) from error

    def pwrite(self, sector: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data`, whole sectors of it, from `sector`. Raises UsageError, DeviceError."""
        size = memoryview(data).nbytes
        if size % (1 << SECTOR_SHIFT):
            raise UsageError(f"{self.path}: {size} bytes are not a whole number of sectors")
        count = size >> SECTOR_SHIFT
        self._check_write(sector, count)
        try:
            transfer.write_whole(self.fileno(), sector << SECTOR_SHIFT, data)
        except OSError as error:
            raise self._failed("write", sector, count, error) from error

    def flush(self) -> None:
        """Make all that was written durable (fdatasync: page cache and the disk's own cache)."""
        try:
            os.fdatasync(self.fileno())
        except OSError as error:
            raise DeviceError(self.path, "flush it", error.errno or 0) from error

    def discard(self, sector: int, count: int) -> None:
        """Give up the content of a range: BLKDISCARD, or a hole in a file, which reads as zero.

        What a block device reads there afterwards is its own affair. Raises DeviceError with
        EOPNOTSUPP where the device cannot discard.
        """
        self._check_write(sector, count)
        if not count:
            return
        try:
            self._discard(*_in_bytes(sector, count))
        except OSError as error:
            raise self._failed("discard", sector, count, error) from error

    def zero_out(self, sector: int, count: int, *, unmap: bool = False) -> None:
        """Make a range read as zeroes: by the cheapest way that the device has, else by writing.

        `unmap`: a block device, too, may give up the space (blkdev_fallocate in block/fops.c).

        In a file that is a hole: as `discard` in the kernel's loop driver, it takes no space, so
        zeroing a large sparse file cannot fill the disk. Raises UsageError, DeviceError.
        """
        self._check_write(sector, count)
        if not count:
            return
        try:
            self._zero_out(*_in_bytes(sector, count), unmap=unmap)
        except OSError as error:
            raise self._failed("zero", sector, count, error) from error

    def _discard(self, start: int, length: int) -> None:
        if self.is_block:
            syscalls.block_discard(self._exclusive(), start, length)
        else:
            mode = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
            syscalls.fallocate(self.fileno(), mode, start, length)

    def _zero_out(self, start: int, length: int, *, unmap: bool) -> None:
        mode = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
        if unmap and self.is_block:
            try:
                syscalls.fallocate(self._exclusive(), mode, start, length)
                return
            except OSError:
                pass  # it has no such command: what follows says what is wrong
        try:
            if self.is_block:
                syscalls.block_zero_out(self._exclusive(), start, length)
            else:
                self._discard(start, length)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            transfer.write_zeroes(self.fileno(), start, length)

    def _exclusive(self) -> int:
        """Return the descriptor that the claim is, where there is one; see `opening.claim`."""
        fd = self.fileno()
        return fd if self._claim < 0 else self._claim

    def _check(self, sector: int, count: int) -> None:
        end = sector + count
        if sector < 0 or count < 0 or end > self.sectors:
            raise UsageError(
                f"{self.path}: {count} sectors from {sector} are not within its {self.sectors}"
            )
        block = self.logical_block_size >> SECTOR_SHIFT
        if sector % block or count % block:
            raise UsageError(
                f"{self.path}: {count} sectors from {sector} are not whole blocks: its blocks are "
                f"{self.logical_block_size} bytes, so give multiples of {block} sectors"
            )

    def _check_write(self, sector: int, count: int) -> None:
        if self.read_only:
            raise UsageError(f"{self.path}: it was opened for reading only")
        self._check(sector, count)

    def _failed(self, action: str, sector: int, count: int, error: OSError) -> DeviceError:
        return DeviceError(self.path, f"{action} {count} sectors from {sector}", error.errno or 0)


def _in_bytes(sector: int, count: int) -> tuple[int, int]:
    return sector << SECTOR_SHIFT, count << SECTOR_SHIFT


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
