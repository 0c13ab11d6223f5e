"""Where a device has nothing but zeroes that take no space, as far as that can be known cheaply.

Of a file its file system knows it. A block device does not say, and what a mapped device reads can
come from anywhere: of those all is data.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from dmcopy.io.region import Device
from dmcopy.io.stacked import StackedDevice


def extents(device: Device, start: int, end: int) -> Iterator[tuple[int, bool]]:
    """Yield the lengths in bytes of what lies from `start` to `end`, and whether it is a hole.

    They are of whole blocks; data and holes take turns.
    """
    if isinstance(device, StackedDevice) or not stat.S_ISREG(os.fstat(device.fileno()).st_mode):
        yield end - start, False
        return
    block = device.logical_block_size
    while start < end:
        data = min(_seek(device, start, os.SEEK_DATA, end) // block * block, end)
        if data > start:
            yield data - start, True
        if data < end:
            start = min(-(-_seek(device, data, os.SEEK_HOLE, end) // block) * block, end)
            yield start - data, False
        else:
            start = end


def _seek(device: Device, start: int, whence: int, end: int) -> int:
    try:
        return os.lseek(device.fileno(), start, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:  # there is only a hole
            return end
        raise
