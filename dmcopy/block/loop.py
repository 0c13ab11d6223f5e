"""Loop devices: a file as a block device, for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dmcopy.block import backing as behind
from dmcopy.block import holders, syscalls, sysfs, tools
from dmcopy.errors import BusyError, DeadlineError, DeviceError, MissingError, UsageError
from dmcopy.ledger import Ledger, NoLedger
from dmcopy.units import SECTOR_SHIFT

ATTACH_SECONDS: Final = 10.0
DETACH_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True)
class LoopDevice:
    """An attached loop device. `path` is its node, such as /dev/loop3.

    `mark` tells it from the next one of that node, see `block.backing`; the file behind it may have
    been renamed or deleted meanwhile. One that `attach` made is in `ledger`, as `entry`.
    """

    path: str
    backing: str
    mark: str = ""
    ledger: Ledger = field(default_factory=NoLedger, compare=False, repr=False)
    entry: str = field(default="", compare=False, repr=False)

    @property
    def name(self) -> str:
        """The kernel's name, such as loop3."""
        return os.path.basename(self.path)

    def __fspath__(self) -> str:
        return self.path


@contextlib.contextmanager
def loop_device(
    backing: str | os.PathLike[str],
    *,
    direct: bool = True,
    sector_size: int = 512,
    read_only: bool = False,
    offset: int = 0,
    size: int | None = None,
    ledger: Ledger | None = None,
) -> Iterator[LoopDevice]:
    """Attach `backing` to a free loop device and detach it at the end.

    `direct` lets the loop device bypass the page cache of the backing file where its file system
    can (else it is buffered); `sector_size` is its logical block size in bytes; `offset` and `size`
    are in sectors. It is in `ledger`, by default the user's, until it is detached: after a crash,
    reaping removes it. Raises UsageError, MissingError (losetup, loop support, root), DeviceError,
    and at the end BusyError when the device is still in use.
    """
    device = attach(
        backing,
        direct=direct,
        sector_size=sector_size,
        read_only=read_only,
        offset=offset,
        size=size,
        ledger=ledger,
    )
    try:
        yield device
    finally:
        detach(device)


def attach(
    backing: str | os.PathLike[str],
    *,
    direct: bool = True,
    sector_size: int = 512,
    read_only: bool = False,
    offset: int = 0,
    size: int | None = None,
    ledger: Ledger | None = None,
) -> LoopDevice:
    """Attach `backing` to a free loop device, which stays until `detach`; see `loop_device`."""
    file = str(Path(backing).resolve())  # as the kernel shows it
    if not os.path.exists(file):
        raise UsageError(f"{file}: there is no such file to make a loop device of")
    words = ["--find", "--show", f"--sector-size={sector_size}"]
    words += ["--read-only"] if read_only else []
    words += [f"--offset={offset << SECTOR_SHIFT}"] if offset else []
    words += [f"--sizelimit={size << SECTOR_SHIFT}"] if size is not None else []
    device = _noted(words, file, ledger or Ledger(), direct=direct)
    try:
        _wait_for_node(device)
        if not read_only:
            _have_flushed(device.name)
    except BaseException:
        detach(device)
        raise
    return device


def _have_flushed(name: str) -> None:
    """Have flushes reach the file, also where an earlier user of the loop device said otherwise.

    "write through" in its `queue/write_cache` outlives the file that it was meant for, and the
    block layer then drops every flush (measured on 6.18).
    """
    attribute = f"/sys/block/{name}/queue/write_cache"
    if sysfs.read(attribute) == "write through":
        with contextlib.suppress(OSError), open(attribute, "w") as file:
            file.write("write back")


def _noted(words: list[str], file: str, ledger: Ledger, *, direct: bool) -> LoopDevice:
    """Attach `file`, with an entry in the ledger from before it is there."""
    early = ledger.add("loop", "", uuid=file)
    try:
        path = _attach(words, file, direct=direct)
    except DeadlineError:
        raise  # losetup may have attached it all the same, as at a Ctrl-C
    except Exception:
        ledger.cancel(early)
        raise
    mark = behind.mark(os.path.basename(path))
    entry = ledger.add("loop", path, uuid=mark or file)
    ledger.cancel(early)
    return LoopDevice(path, file, mark, ledger, entry)


def _attach(words: list[str], file: str, *, direct: bool) -> str:
    """Run losetup until it has a device; return the node that it names.

    Two processes may see the same free device, and one of them is told EBUSY; losetup mostly tries
    again itself, and prints that it did. So the name is what --show says, never a guess.
    """
    deadline = time.monotonic() + ATTACH_SECONDS
    while True:
        how = f"--direct-io={'on' if direct else 'off'}"
        done = tools.run(["losetup", how, *words, file], timeout=ATTACH_SECONDS * 3)
        if done.returncode == 0:
            return done.stdout.strip()
        number = _errno_of(done.stderr)
        if direct and number == errno.EINVAL:
            # The file system does no direct I/O, as tmpfs before Linux 6.6, or not in such sectors.
            direct = False
        elif number == errno.EBUSY and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        else:
            raise _attach_failed(file, number, done.stderr.strip())


def _errno_of(stderr: str) -> int:
    """Return the error that a program's last words end with; EIO where they name none."""
    said = stderr.strip()
    return next((n for n in errno.errorcode if said.endswith(os.strerror(n))), errno.EIO)


def _attach_failed(file: str, number: int, said: str) -> Exception:
    if os.geteuid() != 0:
        return MissingError(f"{file}: loop devices need root: {said}")
    if not os.path.exists("/dev/loop-control"):
        return MissingError("this kernel has no loop devices: try 'modprobe loop'")
    return DeviceError(file, "make a loop device of it", number, said)


def detach(device: LoopDevice, seconds: float = DETACH_SECONDS) -> None:
    """Detach a loop device; one with a `mark` is left alone when it is detached already.

    Detaching a device that is open only marks it, and the kernel does it at the last close: so this
    waits, at most that many seconds, for the backing file to be gone. Raises BusyError naming the
    process that keeps it, DeadlineError when none can be named.
    """
    deadline = time.monotonic() + seconds
    mark = device.mark or behind.mark(device.name)
    while (why := _why_attached(device, mark)) is not None:
        if time.monotonic() > deadline:
            raise _detach_failed(device, seconds, why)
        time.sleep(_POLL_SECONDS)
    device.ledger.cancel(device.entry)


def let_go(device: LoopDevice) -> None:
    """Detach a loop device, at its last close if it is open."""
    if _why_attached(device, device.mark) is None:
        device.ledger.cancel(device.entry)


def _why_attached(device: LoopDevice, mark: str) -> str | None:
    """Have the driver detach the one of that mark; return why it still is there, None if it is not.

    No program does it, which might not be started. What cannot be asked, as no descriptor is left,
    is taken for attached.
    """
    try:
        if not mark or behind.mark(device.name) != mark:
            return None
        said = _clear(device, mark)
        return said if behind.mark(device.name) == mark else None
    except MissingError as error:
        return str(error)


def _clear(device: LoopDevice, mark: str) -> str:
    """Have the driver detach it, if it is the one of that mark; return why not."""
    try:
        fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Once it is open it cannot become another one, which another process has attached.
            if behind.mark(device.name) == mark:
                syscalls.loop_clear(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _detach_failed(device: LoopDevice, seconds: float, said: str) -> Exception:
    found = [str(holder) for holder in holders.who(device.path)]
    if found:
        return BusyError(device.path, found, "it stays attached until they let it go")
    return DeadlineError(f"{device.path} is still attached after {seconds:g} s: {said}")


def _wait_for_node(device: LoopDevice) -> None:
    """Wait until the node is there: devtmpfs makes it immediately, a udev in a container later."""
    deadline = time.monotonic() + ATTACH_SECONDS
    while not os.path.exists(device.path):
        if time.monotonic() > deadline:
            raise DeadlineError(f"{device.path} did not appear within {ATTACH_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
