"""log-writes on both engines: the same writes, one at a time, leave the same log to the byte."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dmcopy.ondisk.write_log import END, LogEntry, LogFlag, parse_entries
from dmcopy.testing.logfile import LogFile
from dmcopy.testing.replay import Replay

from .conftest import SECTORS, Twins

pytestmark = pytest.mark.kernel

FIRST = random.Random(0).randbytes(SECTORS << 9)
"""What disk A has before."""

OPERATIONS = (
    ("write", 0, 8),
    ("write", 24, 16),
    ("flush",),
    ("message", "mark", "hello"),
    ("fua", 48, 8),
    ("discard", 64, 64),
    ("write", 8, 8),
    ("read", 0, 64),
    ("message", "MARK", "x" * 600),
    ("message", "mark"),
    ("message", "nonsense", "x"),
    ("flush",),
    ("flush",),
    ("write", 0, 8),
)


@pytest.mark.parametrize(("block_size", "last"), [(512, 51), (4096, 135)])
def test_the_log(
    request: pytest.FixtureRequest, tmp_path: Path, block_size: int, last: int
) -> None:
    twins: Twins = request.getfixturevalue("twins" if block_size == 512 else "twins_4k")
    kernels, ours = twins.run("0 256 log-writes A B", OPERATIONS, f"0 256 log-writes 11 {last}")
    assert ours.outcomes == kernels.outcomes
    assert (ours.status, ours.table) == (kernels.status, kernels.table)
    assert ours.disks == kernels.disks
    unit = block_size >> 9
    flush = LogEntry(0, 0, LogFlag.FLUSH)
    assert [entry for entry, _ in parse_entries(kernels.disks["B"])] == [
        LogEntry(0, 8 // unit, LogFlag(0)),
        LogEntry(24 // unit, 16 // unit, LogFlag(0)),
        flush,
        LogEntry.mark(b"hello", block_size),
        LogEntry(48 // unit, 8 // unit, LogFlag.FUA),
        flush,
        LogEntry.mark(b"x" * 600, block_size),
        LogEntry(64 // unit, 64 // unit, LogFlag.DISCARD),
        LogEntry(8 // unit, 8 // unit, LogFlag(0)),
        flush,
        flush,
        LogEntry(0, 8 // unit, LogFlag(0)),
        LogEntry.mark(END, block_size),
    ]
    assert replayed(tmp_path, kernels.disks["B"], FIRST) == kernels.disks["A"]


def replayed(folder: Path, log: bytes, disk: bytes) -> bytes:
    """Return what a disk becomes by a log."""
    (folder / "log").write_bytes(log)
    (folder / "disk").write_bytes(disk)
    with LogFile(str(folder / "log")) as found:
        assert not list(Replay(found, str(folder / "disk"), found.entries()).run())
    return (folder / "disk").read_bytes()


def test_a_log_that_runs_full(twins: Twins) -> None:
    write, flush = ("write", 0, 256), ("flush",)
    operations = [write, flush, *[write] * 8, flush]
    status = "0 256 log-writes 8 2057 logging_disabled"
    kernels, ours = twins.run("0 256 log-writes A B", operations, status)
    assert ours.outcomes == kernels.outcomes
    assert ours.status == kernels.status == status
    assert ours.disks == kernels.disks
