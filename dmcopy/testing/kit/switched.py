"""A disk that can be switched off, and may have larger blocks than what it is kept on."""

from __future__ import annotations

import dataclasses
import errno
from functools import partial

from dmcopy.io.layer import Layer
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.io.request import WRITE, Io


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


class SwitchedDisk(Layer):
    """`below` on a reactor for stacked devices; while `power` is off all its I/O ends with EIO.

    `block_size`, in bytes, is what it says that its blocks are: at least those of `below`.
    """

    def __init__(
        self, path: str, below: Device, reactor: Reactor, block_size: int, power: Power
    ) -> None:
        super().__init__(below, reactor)
        self.path = path
        self.logical_block_size = max(block_size, below.logical_block_size)
        self.read_only = False
        self._power = power

    def submit(self, request: Io) -> None:
        if self._power.off:
            request.error = errno.EIO
            self._reactor.call_soon(partial(request.notify, request))  # type: ignore[arg-type, misc]
            return
        if request.op == WRITE:
            self._power.take_write()
        request.device = self.below
        self._reactor.submit(request)
