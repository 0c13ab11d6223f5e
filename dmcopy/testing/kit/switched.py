"""A disk that can be switched off, and may have larger blocks than what it is kept on."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Hashable
from functools import partial

from dmcopy.io import whole
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.io.request import WRITE, Io
from dmcopy.io.stacked import StackedDevice


@dataclasses.dataclass
class Power:
    """The power of all disks of a test. `writes_left`: how many writes it lasts for; None: any."""

    off: bool = False
    writes_left: int | None = None

    def take_write(self) -> None:
        """Count a write, which is the last one that is done when none is left behind it."""
        if self.writes_left is not None:
            self.writes_left -= 1
            self.off = self.writes_left <= 0


class SwitchedDisk(StackedDevice):
    """`below` on a reactor for stacked devices; while `power` is off all its I/O ends with EIO.

    `block_size`, in bytes, is what it says that its blocks are: at least those of `below`.
    """

    read_only = False

    def __init__(
        self, path: str, below: Device, reactor: Reactor, block_size: int, power: Power
    ) -> None:
        self.path = path
        self.sectors = below.sectors
        self.logical_block_size = max(block_size, below.logical_block_size)
        self.below = below
        self._power = power
        self._reactor = reactor

    @property
    def identity(self) -> Hashable:
        """The object is the disk."""
        return self

    def fileno(self) -> int:
        """There is none."""
        raise OSError(errno.ENOTBLK, "a disk that can be switched off has no descriptor")

    def submit(self, request: Io) -> None:
        """Hand the request down; see `StackedDevice.submit`."""
        if self._power.off:
            request.error = errno.EIO
            self._reactor.call_soon(partial(request.notify, request))  # type: ignore[arg-type, misc]
            return
        if request.op == WRITE:
            self._power.take_write()
        request.device = self.below
        self._reactor.submit(request)

    def flush(self) -> None:
        """Flush, and wait for it."""
        whole.flush(self._reactor, self)

    def discard(self, sector: int, count: int) -> None:
        """Discard, and wait for it."""
        whole.discard(self._reactor, self, sector, count)

    def zero_out(self, sector: int, count: int) -> None:
        """Zero, and wait for it."""
        whole.zero(self._reactor, self, sector, count)
