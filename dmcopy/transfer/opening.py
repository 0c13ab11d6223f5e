"""Opening the source and the destinations of a copy; making the files that are not there yet.

Everything that can be wrong with what was asked for is found here, before anything is written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple, Self

from dmcopy.atomic import sync_folder
from dmcopy.block import BlockDevice
from dmcopy.block.opening import no_such
from dmcopy.block.processes import identity_at
from dmcopy.errors import BusyError, DeviceError, UsageError
from dmcopy.io.region import IoRegion
from dmcopy.transfer.layout import check_apart, check_over
from dmcopy.transfer.plan import check_number, check_regions
from dmcopy.units import MAX_COUNT, SECTOR_SHIFT, SECTOR_SIZE, format_sectors

# Regular files below /dev end up in memory, and a mistyped node's name would fill it; /dev/shm is
# there for files.
_DEVICES, _SHARED_MEMORY = "/dev/", "/dev/shm/"


class TransferRequest(NamedTuple):
    """What a user asked for, in sectors. `source` None: zeroes. `count` None: all there is."""

    source: str | None
    dests: tuple[str, ...]
    source_start: int = 0
    dest_start: int = 0
    count: int | None = None  # type: ignore[assignment]  # hides tuple.count


class OpenedRegions:
    """The open regions of a copy; a context manager. `created`: the files that it made."""

    def __init__(self) -> None:
        self.source: IoRegion | None = None
        self.dests: list[IoRegion] = []
        self.created: list[str] = []
        self.missing: list[tuple[str, int]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def device(self, path: str, *, write: bool, direct: bool | None = None) -> BlockDevice:
        """Open a device or file, until the end of the block."""
        return self._stack.enter_context(BlockDevice.open(path, write=write, direct=direct))

    def discard_created(self) -> None:
        """Remove the files that were made for a copy that came to nothing."""
        for path in self.created:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        self.created.clear()


def open_all(request: TransferRequest, *, create: bool = True) -> OpenedRegions:
    """Open everything that `request` names. Raises UsageError, BusyError, DeviceError.

    Files that are not there are created, sparse and as long as needed; without `create` they are
    only listed in `missing`, with their length in sectors.
    """
    _check_names(request)
    opened = OpenedRegions()
    try:
        _open_source(opened, request)
        for path in request.dests:
            _open_dest(opened, request, path, create)
        _check(opened)
    except BaseException:
        opened.__exit__()
        opened.discard_created()
        raise
    return opened


def _check_names(request: TransferRequest) -> None:
    check_number(len(request.dests))
    if request.count is not None and request.count <= 0:
        raise UsageError(f"{request.count} sectors: there is nothing to write")
    seen: dict[object, str] = {}
    for path in request.dests:
        key = _key(path)
        if key in seen:
            also = "" if seen[key] == path else f" (also as {seen[key]})"
            raise UsageError(f"{path} is given twice as a destination{also}")
        seen[key] = path


def _open_source(opened: OpenedRegions, request: TransferRequest) -> None:
    if request.source is None:
        return
    device = opened.device(request.source, write=False)
    start, count = request.source_start, request.count
    if count is None:
        if device.size_bytes % SECTOR_SIZE:
            fits = device.sectors - start
            fewer = f", or give --count {fits} for the whole sectors" if fits > 0 else ""
            raise UsageError(
                f"{device.path} is {device.size_bytes} bytes long, which is not a whole number of "
                f"512-byte sectors: pad it (truncate -s %512){fewer}"
            )
        count = device.sectors - start
    if count <= 0 or start + count > device.sectors:
        asked = f"sectors {start}+{count}" if request.count is not None else f"sector {start}"
        raise UsageError(
            f"{device.path} has {format_sectors(device.sectors)}: {asked} cannot be copied from it"
        )
    opened.source = IoRegion(_reachable(opened, device, start, count, write=False), start, count)


def _open_dest(opened: OpenedRegions, request: TransferRequest, path: str, create: bool) -> None:
    start = request.dest_start
    count = opened.source.count if opened.source else request.count
    if start + (count or 0) > MAX_COUNT >> SECTOR_SHIFT:
        raise UsageError(f"{path}: sector {start}+{count} is beyond the end of any file or device")
    if not os.path.lexists(path):
        if count is None:
            raise no_such(path, "; to make one, give --count")
        if not create:
            _check_creatable(path)
            opened.missing.append((path, start + count))
            return
        _create(opened, path, start + count)
    try:
        device = opened.device(path, write=True)
    except BusyError:
        check_over(path, [region.device for region in opened.dests])
        raise
    if count is None:
        count = device.sectors - start
    if count <= 0 or start + count > device.sectors:
        raise UsageError(
            f"{path} is too small: it has {format_sectors(device.sectors)}, and "
            f"{format_sectors(start + max(count, 1))} are needed; {_what_to_do(device, start)}"
        )
    device = _reachable(opened, device, start, count, write=True)
    opened.dests.append(IoRegion(device, start, count))


def _what_to_do(device: BlockDevice, start: int) -> str:
    fits = device.sectors - start
    shorter = f"copy less with --count {fits}" if fits > 0 else "give a smaller --to"
    longer = "take a larger device" if device.is_block else "make it longer (truncate -s)"
    return f"{shorter}, or {longer}"


def _reachable(
    opened: OpenedRegions, device: BlockDevice, start: int, count: int, *, write: bool
) -> BlockDevice:
    """Return a handle that can address the range: direct I/O on a file may want larger blocks."""
    misfit = ((start | count) << SECTOR_SHIFT) % device.logical_block_size
    if not misfit or device.is_block:
        return device
    device.close()  # before the next: its lock would refuse us
    return opened.device(device.path, write=write, direct=False)


def _check_creatable(path: str) -> str:
    """Return the folder for a new file. Raises UsageError where none should be or can be made."""
    if not path:
        raise no_such(path)
    if path.endswith("/"):
        raise UsageError(f"{path} is the name of a folder, which is not there: name a file")
    if path == "-":
        raise UsageError("-: a copy is to devices and files, not to standard output")
    if "=" in path:
        from dmcopy.block.discovery import split_tag  # here, as most copies do without it

        if split_tag(path)[0]:
            raise UsageError(f"{path} names a device, not a file: ./{path} would be one")
    folder = os.path.dirname(os.path.realpath(path))
    if f"{folder}/".startswith(_DEVICES) and not f"{folder}/".startswith(_SHARED_MEMORY):
        raise UsageError(f"{path}: there is no such device, and no file is made below /dev")
    if not os.path.isdir(folder):
        raise UsageError(f"{path}: there is no folder {folder} to make it in")
    return folder


def _create(opened: OpenedRegions, path: str, sectors: int) -> None:
    folder = _check_creatable(path)
    try:
        _create_whole(path, folder, sectors << SECTOR_SHIFT)
        opened.created.append(path)
        sync_folder(folder)
    except OSError as error:
        hint = "the file system takes no file of that size" if error.errno == errno.EFBIG else ""
        raise DeviceError(path, "create it", error.errno or 0, hint) from error


def _create_whole(path: str, folder: str, size: int) -> None:
    """Make a sparse file that gets its name only when it has its size.

    A kill between the two would else leave an empty file, which the next run would find too small.
    """
    nameless = True
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except OSError:  # not every file system has files without a name
        nameless = False
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(fd, size)
        if nameless:
            # Only with a src_dir_fd, here without a meaning, does Python tell the kernel to follow.
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except OSError:
        if not nameless:
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def _check(opened: OpenedRegions) -> None:
    if opened.dests:
        check_regions(opened.source, opened.dests)
    check_apart(opened.source, opened.dests)


def is_same(path: str, others: Sequence[str]) -> str:
    """Return which of `others` is the same device or file as `path`, "" when none is.

    What is not there yet is the same where it would be made by the same name.
    """
    wanted = _key(path)
    return next((other for other in others if _key(other) == wanted), "")


def _key(path: str) -> object:
    return identity_at(path) or os.path.realpath(path)
