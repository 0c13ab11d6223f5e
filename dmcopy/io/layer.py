"""A disk over another one, in this process: what those have in common that change its ways."""

from __future__ import annotations

import errno
from collections.abc import Hashable

from dmcopy.io import whole
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.io.stacked import StackedDevice


class Layer(StackedDevice):
    """A disk as large as `below`, with its blocks, on a reactor for stacked devices.

    A subclass has `submit`, and hands on to `below` what it does not do itself.
    """

    def __init__(self, below: Device, reactor: Reactor) -> None:
        self.path = below.path
        self.sectors = below.sectors
        self.logical_block_size = below.logical_block_size
        self.read_only = below.read_only
        self.below = below
        self._reactor = reactor

    @property
    def identity(self) -> Hashable:
        """The object is the disk."""
        return self

    def fileno(self) -> int:
        """There is none: I/O by a descriptor would go past this disk."""
        raise OSError(errno.ENOTBLK, f"{type(self).__name__} has no descriptor")

    def flush(self) -> None:
        """Flush, and wait for it."""
        whole.flush(self._reactor, self)

    def discard(self, sector: int, count: int) -> None:
        """Discard, and wait for it."""
        whole.discard(self._reactor, self, sector, count)

    def zero_out(self, sector: int, count: int) -> None:
        """Zero, and wait for it."""
        whole.zero(self._reactor, self, sector, count)
