"""Both engines, each over its own four disks in memory, and what the tests of snapshots look at."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path

from dmcopy.errors import DeviceError
from dmcopy.ledger import Ledger
from dmcopy.mapper.userspace import UserMapper
from dmcopy.ondisk.exception_store import AreaLayout, StoreHeader, parse_area
from dmcopy.testing.compare import Harness, kernel_reactor
from dmcopy.testing.disks import Disks
from dmcopy.testing.steps import AwaitMerge

from .ioctls import IoctlMapper

SECTORS = 16384
"""Of each disk: 8 MiB."""
DISKS = ("A", "B", "C", "D")
WAIT_SECONDS = 60.0


class Engine(Harness):
    """An engine, with disks A to D. Its status is the words behind the target's name."""

    def status(self, name: str) -> str:
        """Return the words of the status behind the target's name."""
        return self.words(name)

    def header(self, disk: str) -> StoreHeader | None:
        """Return the header of the exception store on a disk."""
        return StoreHeader.parse(self.peek(disk, 0, 1))

    def exceptions(self, disk: str) -> list[tuple[int, int]]:
        """Return the exceptions of the store on a disk, (old, new), in their order."""
        header = self.header(disk)
        assert header is not None
        layout, size = AreaLayout(header.chunk_size), header.chunk_size
        found: list[tuple[int, int]] = []
        for area in range(layout.areas_on(SECTORS // size)):
            pairs = parse_area(self.peek(disk, layout.area_location(area) * size, size))
            found += zip(pairs[0::2], pairs[1::2], strict=True)
            if len(pairs) < 2 * layout.per_area:
                break
        return found

    def peek(self, disk: str, sector: int, count: int) -> bytes:
        """Return the content of a disk."""
        return self.disks.peek(disk, sector, count)

    def poke(self, disk: str, sector: int, data: bytes) -> None:
        """Change the content of a disk."""
        self.disks.poke(disk, sector, data)

    def wait_merged(self, name: str) -> None:
        """Wait until a merge has ended, well or not."""
        AwaitMerge(name).do(self)

    def read(self, name: str, sector: int, count: int) -> bytes:
        """Read from a device. Raises DeviceError."""
        return self.open(name).read(sector, count)

    def write(self, name: str, sector: int, data: bytes) -> None:
        """Write to a device. Raises DeviceError."""
        self.open(name).write(sector, data)

    def flush(self, name: str) -> None:
        """Flush a device. Raises DeviceError."""
        self.open(name).flush()

    def discard(self, name: str, sector: int, count: int) -> None:
        """Discard a range. Raises DeviceError."""
        self.open(name).discard(sector, count)


class KernelEngine(Engine):
    """The kernel, over loop devices."""

    mapper: IoctlMapper

    def __init__(self, folder: Path, names: Iterable[str] = DISKS) -> None:
        ledger = Ledger(folder.with_suffix(".ledger"))
        disks = Disks(folder, dict.fromkeys(names, SECTORS), loops=True, ledger=ledger)
        mapper = IoctlMapper(ledger, kernel_reactor(), WAIT_SECONDS)
        super().__init__("kernel", mapper, disks)

    def close(self) -> None:
        """Remove the disks."""
        self.mapper.close()
        self.reactor.close()
        self.disks.close()
        self.mapper.ledger.path.unlink(missing_ok=True)


class UserEngine(Engine):
    """dmcopy's own engine, over plain files, or over the disks of the kernel's when given that."""

    mapper: UserMapper

    def __init__(
        self,
        folder: Path | None = None,
        names: Iterable[str] = DISKS,
        *,
        kernel: KernelEngine | None = None,
    ) -> None:
        if kernel is None:
            assert folder is not None
            disks = Disks(folder, dict.fromkeys(names, SECTORS))
        else:
            disks = kernel.disks
        self._owns_disks = kernel is None
        super().__init__("user", UserMapper(timeout=WAIT_SECONDS), disks)

    def close(self) -> None:
        """Remove what is left, the disks too."""
        self.mapper.close()
        if self._owns_disks:
            self.disks.close()


def errno_of(action: Callable[[], object]) -> int:
    """Return the errno that an action fails with, 0 when it does not."""
    try:
        action()
    except DeviceError as error:
        return error.errno
    return 0


def error_name(action: Callable[[], object]) -> str:
    """Return the name of the errno that an action fails with, empty when it does not."""
    number = errno_of(action)
    return errno.errorcode[number] if number else ""


def pattern(seed: int, sectors: int) -> bytes:
    """Return sectors that tell where they come from."""
    return b"".join(b"%08x.%06x;" % (seed, sector) * 32 for sector in range(sectors))
