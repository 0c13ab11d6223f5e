"""The disks of a bench: files with data in them, and loop devices over files in RAM.

Everything lives in one scratch directory for each place, and goes away with it, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.process import BenchError, quiet

RAM = Path("/dev/shm")
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Disks:
    """A source with random data and as many destinations of the same size."""

    place: str
    source: Path
    dests: tuple[Path, ...]
    size: int


@contextlib.contextmanager
def files(parent: Path, size: int, dests: int) -> Iterator[Disks]:
    """Files of `size` bytes in a new directory under `parent`, all blocks allocated and written."""
    with _scratch(parent, size * (1 + dests)) as directory:
        paths = _make(directory, size, dests)
        yield Disks("files", paths[0], tuple(paths[1:]), size)


@contextlib.contextmanager
def loops(size: int, dests: int) -> Iterator[Disks]:
    """Loop devices over files in RAM, with direct I/O: no data is cached twice. Needs root."""
    if os.geteuid() != 0:
        raise BenchError("RAM-backed loop devices need root")
    if not os.path.exists("/dev/loop-control"):
        raise BenchError("this machine has no loop devices (/dev/loop-control is missing)")
    with _scratch(RAM, size * (1 + dests)) as directory:
        devices = [_attach(path) for path in _make(directory, size, dests)]
        yield Disks("RAM loops", devices[0], tuple(devices[1:]), size)


def loops_are_direct(disks: Disks) -> bool:
    """Return whether the loop devices really do direct I/O: older tmpfs refuses it."""
    names = [path.name for path in (disks.source, *disks.dests)]
    return all(
        Path(f"/sys/block/{name}/loop/dio").read_text(encoding="ascii").strip() == "1"
        for name in names
    )


def filesystem(path: Path) -> str:
    """Return the type of the file system that `path` lies on."""
    return quiet(["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path)]).strip()


def settle(paths: Sequence[Path]) -> None:
    """Write out and forget what the page cache holds of `paths`: every run starts from the disk.

    Only these files: dropping every cache of the machine would disturb other users of it.
    """
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def scrub(paths: Sequence[Path], size: int) -> None:
    """Fill `paths` with a pattern, so that a copy that writes nothing cannot look good."""
    block = b"\xa5" * _BLOCK
    for path in paths:
        _fill(path, size, lambda: block)


def compare(source: Path, dests: Sequence[Path]) -> None:
    """Raise BenchError unless every destination holds the source's bytes."""
    for dest in dests:
        try:
            quiet(["cmp", "--silent", str(source), str(dest)])
        except BenchError:
            raise BenchError("the destination differs from the source after the copy") from None


@contextlib.contextmanager
def _scratch(parent: Path, need: int) -> Iterator[Path]:
    room = shutil.disk_usage(parent).free
    if parent == RAM:
        # Half of the memory that is available: the other half is for everybody else.
        room = min(room, _available_memory() // 2)
    if need > room:
        raise BenchError(f"{parent} has {room >> 20} MiB to spare, this needs {need >> 20} MiB")
    directory = Path(tempfile.mkdtemp(prefix="dmcopy-bench-", dir=parent))
    try:
        yield directory
    finally:
        with _undisturbed():
            _detach_all(directory)
            shutil.rmtree(directory, ignore_errors=True)


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Cleaning up is not interrupted: a second Ctrl-C would leave loop devices behind."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make(directory: Path, size: int, dests: int) -> list[Path]:
    paths = [directory / "source", *(directory / f"dest{i}" for i in range(1, dests + 1))]
    _fill(paths[0], size, lambda: os.urandom(_BLOCK))
    scrub(paths[1:], size)
    return paths


def _fill(path: Path, size: int, block: Callable[[], bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for offset in range(0, size, _BLOCK):
            os.pwrite(fd, block()[: size - offset], offset)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _attach(path: Path) -> Path:
    argv = ["losetup", "--find", "--show", "--direct-io=on", str(path)]
    return Path(quiet(argv).strip())


def _detach_all(directory: Path) -> None:
    """Detach every loop device over a file in `directory`; the kernel is asked, none is missed."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            held = backing.read_text(encoding="utf-8").strip()
        except OSError:
            continue  # detached meanwhile
        if Path(held).parent == directory:
            with contextlib.suppress(BenchError):
                quiet(["losetup", "--detach", f"/dev/{backing.parts[3]}"])
