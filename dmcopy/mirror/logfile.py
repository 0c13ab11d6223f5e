"""Reading a mirror log from the device or file that it is on."""

from __future__ import annotations

from dmcopy.block import BlockDevice
from dmcopy.ondisk.mirror_log import OFFSET, MirrorLog, log_bytes, parse_header
from dmcopy.units import SECTOR_SHIFT


def read_log_bytes(device: BlockDevice) -> bytes:
    """Return the log at the start of `device`, or all that there is of it.

    Raises MetadataError for what has no header of a log, DeviceError.
    """
    head = _read(device, OFFSET)
    header = parse_header(head, device.path)
    return _read(device, log_bytes(header.nr_regions))


def read_log(path: str) -> MirrorLog:
    """Return the log on the device or file at `path`. Only reads.

    Raises MetadataError naming the byte, UsageError, DeviceError.
    """
    with open_log(path) as device:
        return MirrorLog.parse(read_log_bytes(device), path)


def open_log(path: str) -> BlockDevice:
    """Open a log to be read. Raises UsageError, DeviceError.

    A device is read past its page cache, which knows nothing of what a mirror on it writes.
    """
    device = BlockDevice.open(path)
    if device.is_block:
        return device
    device.close()
    return BlockDevice.open(path, direct=False)


def check_room(log: MirrorLog, device: BlockDevice) -> str:
    """Return why a mirror could not use `log` on `device`; empty when it can.

    The kernel reads and writes whole blocks, and refuses a device that ends before
    (create_log_context in drivers/md/dm-log.c).
    """
    needs = log_bytes(log.nr_regions, device.logical_block_size if device.is_block else 512)
    if needs <= device.size_bytes:
        return ""
    return (
        f"{device.path}: byte {device.size_bytes}: the device ends here, but a mirror with "
        f"{log.nr_regions} regions needs {needs} bytes of it"
    )


def _read(device: BlockDevice, size: int) -> bytes:
    """Return the first `size` bytes; fewer where the device or file ends before that."""
    if not device.is_block:
        # A log that was cut may end within a sector, and every byte of it counts.
        with open(device.fileno(), "rb", closefd=False) as file:
            file.seek(0)
            return file.read(size)
    block = device.logical_block_size
    sectors = min(-(-size // block) * block >> SECTOR_SHIFT, device.sectors)
    return device.pread(0, sectors)[:size]
