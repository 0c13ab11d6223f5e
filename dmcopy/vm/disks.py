"""A guest's disks: sparse files that last from boot to boot, found in the guest by their serial."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy.errors import DeviceError, UsageError
from dmcopy.units import SECTOR_SIZE, parse_bytes

_SERIAL: Final = re.compile(r"[A-Za-z0-9_.-]{1,20}")  # virtio-blk cuts longer ones off


@dataclass(frozen=True)
class Disk:
    """A disk to give to a guest.

    `size` is text (1G, 64M) or bytes; `serial` becomes /dev/disk/by-id/virtio-SERIAL. `path` is
    the file behind it: by default one that is removed with the guest. An existing file is used as
    it is, and is all that the disk keeps from one boot to the next. `twin`: it has the serial of
    another disk on purpose, as real ones sometimes have.
    """

    size: str | int
    serial: str
    path: Path | None = None
    twin: bool = False

    def __post_init__(self) -> None:
        if not _SERIAL.fullmatch(self.serial):
            raise UsageError(
                f"{self.serial!r} is not a serial: 1 to 20 letters, digits, '_', '.' and '-'"
            )
        if self.size_bytes <= 0 or self.size_bytes % SECTOR_SIZE:
            raise UsageError(f"{self.size}: a disk is one or more whole sectors of 512 bytes")

    @property
    def size_bytes(self) -> int:
        return self.size if isinstance(self.size, int) else parse_bytes(self.size)

    @property
    def device(self) -> str:
        """The disk's name in the guest."""
        return f"/dev/disk/by-id/virtio-{self.serial}"

    def create(self, default: Path) -> Path:
        """Make the file behind the disk unless it exists, and return its path.

        Raises UsageError for one of another size, DeviceError where none can be made.
        """
        path = self.path or default
        if not path.exists():
            try:
                with path.open("xb") as file:
                    file.truncate(self.size_bytes)
            except OSError as error:
                raise DeviceError(str(path), "make a disk's file of it", error.errno or 0) from None
        elif path.stat().st_size != self.size_bytes:
            raise UsageError(
                f"{path} has {path.stat().st_size} bytes, and the disk {self.serial} was asked "
                f"for with {self.size_bytes}: give that size, or another file"
            )
        return path


def parse_disk(text: str) -> Disk:
    """Return the disk that `SIZE,serial=NAME[,file=PATH][,twin]` means. Raises UsageError."""
    size, *rest = text.split(",")
    options = dict(word.partition("=")[::2] for word in rest if word != "twin")
    unknown = set(options) - {"serial", "file"}
    if unknown or "serial" not in options:
        raise UsageError(f"{text!r} is not a disk: give SIZE,serial=NAME[,file=PATH][,twin]")
    file = options.get("file")
    return Disk(size, options["serial"], Path(file).absolute() if file else None, "twin" in rest)


def check_disks(disks: list[Disk]) -> None:
    """Raise UsageError if two disks have one serial, and neither is a twin."""
    serials = [disk.serial for disk in disks if not disk.twin]
    for serial in serials:
        if serials.count(serial) > 1:
            raise UsageError(
                f"two disks have the serial {serial}: if that is meant, say so of the second, as "
                f"in 1G,serial={serial},twin"
            )
