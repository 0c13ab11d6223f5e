"""Opening what a COW is used with: its origin, and an image that is to be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dmcopy.block import BlockDevice
from dmcopy.cow.extract import Extract, plan_extract
from dmcopy.cow.merge import Merge, plan_merge
from dmcopy.cow.store import open_cow, read_store
from dmcopy.errors import UsageError
from dmcopy.io.region import IoRegion
from dmcopy.transfer.layout import check_apart
from dmcopy.transfer.opening import OpenedRegions, TransferRequest, is_same, open_all
from dmcopy.units import SECTOR_SHIFT


@contextmanager
def opened_extract(
    origin: str, cow: str, out: str, *, changed_only: bool = False
) -> Iterator[Extract]:
    """Open origin and COW to read, `out` to write; yield what is to be done.

    A file that is not there is made, sparse and as long as the origin, and removed again when
    nothing was written. Raises UsageError, BusyError, DeviceError, MetadataError.
    """
    _check_paths(cow, origin, out)
    with open_cow(cow) as device:
        chunk_bytes = read_store(device).layout.chunk_bytes
        with open_all(TransferRequest(origin, (out,))) as opened:
            try:
                assert opened.source is not None
                source = _fitting(opened, opened.source, chunk_bytes, write=False)
                dest = _fitting(opened, opened.dests[0], chunk_bytes, write=True)
                _check_apart(device, source)
                _check_apart(device, dest)
                yield plan_extract(source, device, dest, changed_only=changed_only)
            except BaseException:
                opened.discard_created()
                raise


@contextmanager
def opened_merge(origin: str, cow: str, *, dry_run: bool = False) -> Iterator[Merge]:
    """Open both, to write unless `dry_run`; yield what is to be done.

    Raises UsageError, BusyError, DeviceError, MetadataError.
    """
    _check_paths(cow, origin)
    with open_cow(cow, write=not dry_run) as device, OpenedRegions() as opened:
        chunk_bytes = read_store(device).layout.chunk_bytes
        under = opened.device(origin, write=not dry_run)
        region = IoRegion(under, 0, under.sectors)
        region = _fitting(opened, region, chunk_bytes, write=not dry_run)
        _check_apart(device, region)
        yield plan_merge(region, device)


def _fitting(opened: OpenedRegions, region: IoRegion, chunk_bytes: int, *, write: bool) -> IoRegion:
    """Return the region on a handle that can address chunks: direct I/O may want larger blocks."""
    device = region.device
    assert isinstance(device, BlockDevice)
    misfit = (chunk_bytes | region.count << SECTOR_SHIFT) % device.logical_block_size
    if not misfit or device.is_block:
        return region
    device.close()  # before the next: its lock would refuse us
    again = opened.device(device.path, write=write, direct=False)
    return IoRegion(again, region.sector, region.count)


def _check_paths(cow: str, *others: str) -> None:
    """Raise UsageError when another path leads to the COW: opening it twice would only say busy."""
    for path in others:
        if is_same(path, [cow]):
            raise UsageError(f"{path} and the COW, {cow}, are the same")


def _check_apart(cow: BlockDevice, other: IoRegion) -> None:
    try:
        check_apart(IoRegion(cow, 0, cow.sectors), [other])
    except UsageError:
        raise UsageError(
            f"{other.device.path} and the COW, {cow.path}, are the same storage"
        ) from None
