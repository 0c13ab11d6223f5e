"""The other programs that copy, and fio: how each is called, and which this machine has.

Every copy ends with its data on the disk: dd is told to flush, as qemu-img does when it closes a
device without cache; fio and the C limit flush too.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.figures import Run
from tests.bench.process import BenchError, Finished, quiet, run

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that copies one disk to another."""

    name: str
    program: str
    package: str
    argv: Callable[[Path, Path], list[str]]


def dd(source: Path, dest: Path) -> list[str]:
    """The words for dd with direct I/O in pieces of 1 MiB."""
    words = ["dd", f"if={source}", f"of={dest}", "bs=1M", "iflag=direct", "oflag=direct"]
    return [*words, "conv=notrunc,fdatasync", "status=none"]


def qemu_img(source: Path, dest: Path) -> list[str]:
    """The words for qemu-img at its fastest: out of order, 8 requests in flight, no cache."""
    raw = ["-f", "raw", "-O", "raw"]
    return [
        "qemu-img",
        "convert",
        *raw,
        *["-W", "-m", "8", "-t", "none", "-T", "none", "-n"],
        str(source),
        str(dest),
    ]


def nbdcopy(source: Path, dest: Path) -> list[str]:
    """The words for nbdcopy, which knows no direct I/O."""
    return ["nbdcopy", "--flush", str(source), str(dest)]


def ddrescue(source: Path, dest: Path) -> list[str]:
    """The words for ddrescue with direct I/O in pieces of 1 MiB (2048 sectors)."""
    return ["ddrescue", *["-q", "-d", "-D", "-f", "-c", "2048"], str(source), str(dest)]


PEERS = (
    Peer("dd", "dd", "coreutils", dd),
    Peer("qemu-img", "qemu-img", "qemu-utils", qemu_img),
    Peer("nbdcopy", "nbdcopy", "libnbd-bin", nbdcopy),
    Peer("ddrescue", "ddrescue", "gddrescue", ddrescue),
)
QUICK: Final = 2
"""The first of them are measured where time is short: one of them has always been the best."""


def present(program: str) -> bool:
    """Return whether `program` is on the path."""
    return shutil.which(program) is not None


def version(program: str) -> str:
    """Return the first line that `program --version` prints."""
    try:
        return next(iter(quiet([program, "--version"]).splitlines()), "")
    except BenchError:
        return ""


def dmcopy(
    source: Path, dests: Sequence[Path], *, io: str | None = None, count: int | None = None
) -> list[str]:
    """The words for dmcopy itself, which is to choose piece, depth and back end on its own.

    `io` forces a back end; `count` bytes instead of all.
    """
    words = [sys.executable, "-m", "dmcopy", "copy", str(source), *map(str, dests)]
    words += ["--io", io] if io else []
    return [*words, "--count", f"{count}B"] if count else words


def copied(commands: Sequence[Sequence[str]], size: int) -> Run:
    """Run commands one after the other that together copy `size` bytes; MB/s and CPU per GiB."""
    return throughput([run(argv) for argv in commands], size)


def throughput(finished: Sequence[Finished], size: int) -> Run:
    """Return what commands that together copied `size` bytes come to."""
    seconds = sum(one.seconds for one in finished)
    gib = size / GIB
    return Run(
        value=size / seconds / 1e6,
        cpu=sum(one.cpu for one in finished) / gib,
        machine=sum(one.machine for one in finished) / gib,
        seconds=seconds,
    )


def moved(argv: Sequence[str], size: int) -> Run:
    """Return what a command that reads or writes `size` bytes comes to."""
    return throughput([run(argv)], size)


def fio(source: Path, dest: Path, size: int, *, depth: int = 8) -> Run:
    """Let fio read all of the source and write all of the destination at the same time.

    That is a copy without its one constraint, that a piece is read before it is written, so it is
    the limit for the same mix of I/O. One job reads and one writes, each in order, with `depth`
    pieces of 1 MiB in flight on an io_uring of its own; the time is that of the slower one, as fio
    itself reports it, so fio's start-up does not count. (CPU time is of the whole command.)
    """
    common = "--ioengine=io_uring --direct=1 --bs=1M --scramble_buffers=0 --disable_lat=1"
    common += " --disable_clat=1 --disable_slat=1 --disk_util=0 --randrepeat=1 --fallocate=none"
    argv = ["fio", "--output-format=json", "--name=global", *common.split()]
    argv += [f"--iodepth={depth}", f"--size={size}"]
    argv += ["--name=reader", "--rw=read", f"--filename={source}"]
    argv += ["--name=writer", "--rw=write", "--end_fsync=1", f"--filename={dest}"]
    finished = run(argv)
    try:
        jobs = json.loads(finished.stdout[finished.stdout.index("{") :])["jobs"]
        milliseconds = max(jobs[0]["read"]["runtime"], jobs[1]["write"]["runtime"])
        whole = jobs[0]["read"]["io_bytes"] == jobs[1]["write"]["io_bytes"] == size
    except (ValueError, LookupError) as error:
        raise BenchError(f"fio printed no report that can be read: {error}") from None
    if not whole or not milliseconds:
        raise BenchError("fio did not read and write the whole size")
    measured = throughput([finished], size)
    seconds = milliseconds / 1000
    return Run(size / seconds / 1e6, measured.cpu, measured.machine, seconds)
