"""A mapped device of the kernel, opened through its node, past the page cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Hashable

from dmcopy.block import BlockDevice, syscalls
from dmcopy.errors import DeviceError
from dmcopy.io.reactor import Reactor
from dmcopy.io.request import Io
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.mapped_io import MappedIo
from dmcopy.units import SECTOR_SHIFT


class NodeIo(MappedIo):
    """See `MappedIo`. Its size and whether it is read-only are the active table's, as they change.

    The block size is that of the table at the time of opening. A device that is open cannot be
    removed.
    """

    def __init__(self, mapper: Mapper, name: str, reactor: Reactor, timeout: float) -> None:
        self.mapper = mapper
        self.name = name
        self.reactor = reactor
        self.timeout = timeout
        self.path = mapper.path(name)
        try:
            # For writing even if it is read-only: the kernel opens it, and refuses each write. No
            # claim: the mapper's device may be below another. And no trial read, which `direct`
            # None or True would begin with: of a suspended device it would never end.
            fd = os.open(self.path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            number = errno.ENXIO if error.errno == errno.ENOENT else error.errno or 0
            raise DeviceError(name, "open it", number) from error
        self._node = BlockDevice(self.path, fd, read_only=False, direct=False)
        self._open = True

    def __repr__(self) -> str:
        return f"<NodeIo {self.path} of {self.sectors} sectors>"

    @property
    def sectors(self) -> int:
        return syscalls.byte_size(self.fileno()) >> SECTOR_SHIFT

    @property
    def logical_block_size(self) -> int:
        """The largest of the devices below, in bytes, when it was opened."""
        return self._node.logical_block_size

    @property
    def read_only(self) -> bool:
        return syscalls.block_is_read_only(self.fileno())

    @property
    def identity(self) -> Hashable:
        """The number of the block device."""
        return self._node.identity

    def fileno(self) -> int:
        return self._node.fileno()

    def submit(self, request: Io) -> None:
        """Take a request, and hand it to the node; one past the end of the device ends with EIO."""
        request.device = self._node
        self._node.sectors = self.sectors
        self.reactor.submit(request)

    def close(self) -> None:
        if self._open:
            self._open = False
            if not self.reactor.in_callback:
                self.reactor.step()  # an io_uring lets go of a device only when it is entered
            self._node.close()
