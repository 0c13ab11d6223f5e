"""Disks of a test: files in memory, plain or as loop devices, looked at below every device."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path

from dmcopy.block import syscalls
from dmcopy.block.devno import devno_text
from dmcopy.block.loop import LoopDevice, attach, detach
from dmcopy.closing import Closing
from dmcopy.ledger import Ledger
from dmcopy.units import SECTOR_SHIFT


class Disks(Closing):
    """Disks by their names, of the given numbers of sectors, with nothing on them.

    They are files in `folder`, which is made, and removed at the end. `loops`: each is a loop
    device with blocks of `sector_size` bytes (root), noted in `ledger`.
    """

    def __init__(
        self,
        folder: Path,
        sizes: Mapping[str, int],
        *,
        loops: bool = False,
        sector_size: int = 512,
        ledger: Ledger | None = None,
    ) -> None:
        self.sizes = dict(sizes)
        self._folder = folder
        self._loops: list[LoopDevice] = []
        self._files: dict[str, int] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self.paths: dict[str, str] = {}
        folder.mkdir(parents=True)
        try:
            for name, sectors in sizes.items():
                file = folder / name
                self._files[name] = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.truncate(file, sectors << SECTOR_SHIFT)
                self.paths[name] = str(file)
                if loops:
                    self._loops.append(attach(file, sector_size=sector_size, ledger=ledger))
                    self.paths[name] = self._loops[-1].path
        except BaseException:
            self.close()
            raise
        self.words = {path: name for name, path in self.paths.items()}
        if loops:
            self.words |= {_number(path): name for name, path in self.paths.items()}

    def close(self) -> None:
        while self._loops:
            detach(self._loops.pop())
        while self._maps:
            self._maps.popitem()[1].close()
        while self._files:
            os.close(self._files.popitem()[1])
        shutil.rmtree(self._folder, ignore_errors=True)

    def wipe(self) -> None:
        mode = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
        for name, fd in self._files.items():
            syscalls.fallocate(fd, mode, 0, self.sizes[name] << SECTOR_SHIFT)

    def peek(self, disk: str, sector: int = 0, count: int | None = None) -> bytes:
        """Return what a disk holds; by default from `sector` to its end."""
        count = self.sizes[disk] - sector if count is None else count
        return os.pread(self._files[disk], count << SECTOR_SHIFT, sector << SECTOR_SHIFT)

    def same(self, disk: str, other: Disks) -> bool:
        """Whether a disk holds what another's disk of this name and size does.

        Where they lie, as nothing of it is copied: to read a disk costs ten times as much.
        """
        one, two = self._address(disk), other._address(disk)
        return not _memcmp(one, two, self.sizes[disk] << SECTOR_SHIFT)

    def checksum(self, disk: str) -> int:
        """Return the CRC of what a disk holds."""
        return zlib.crc32(self._map(disk))

    def _address(self, disk: str) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map(disk)))

    def _map(self, disk: str) -> mmap.mmap:
        if disk not in self._maps:
            self._maps[disk] = mmap.mmap(self._files[disk], self.sizes[disk] << SECTOR_SHIFT)
        return self._maps[disk]

    def poke(self, disk: str, sector: int, data: bytes) -> None:
        """Change what a disk holds."""
        os.pwrite(self._files[disk], data, sector << SECTOR_SHIFT)


_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _number(path: str) -> str:
    return devno_text(os.stat(path).st_rdev)
