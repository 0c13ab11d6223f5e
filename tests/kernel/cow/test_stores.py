"""Stores that the kernel wrote, read and merged here; stores merged here, and the kernel's view."""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from dmcopy.block.loop import loop_device
from dmcopy.cli.main import main
from dmcopy.cow import merge as merging
from dmcopy.cow.moving import Mover, make_mover
from dmcopy.cow.opening import opened_merge
from dmcopy.errors import ExitCode
from dmcopy.io.region import Device
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Linear, Snapshot, SnapshotMerge, SnapshotOrigin, Table
from tests.waiting import until

pytestmark = pytest.mark.kernel(either=True)  # all kernels have the same format

ORIGIN_SECTORS = 4096
COW_SECTORS = 8192
DEADLINE_SECONDS = 60

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def mapper(tmp_path: Path) -> Mapper:
    return KernelMapper(ledger=Ledger(tmp_path / "ledger.jsonl"))


@dataclass
class Disks:
    """An origin with random content, and a COW of zeroes."""

    origin: str
    cow: str
    content: bytes


@pytest.fixture
def disks() -> Iterator[Disks]:
    folder = Path(f"/dev/shm/dmcopy-cow-{os.getpid()}")
    folder.mkdir()
    content = random.Random(5).randbytes(ORIGIN_SECTORS * 512)
    (folder / "origin").write_bytes(content)
    (folder / "cow").touch()
    os.truncate(folder / "cow", COW_SECTORS * 512)
    with ExitStack() as stack:
        origin = stack.enter_context(loop_device(folder / "origin")).path
        cow = stack.enter_context(loop_device(folder / "cow")).path
        yield Disks(origin, cow, content)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(("cow", *words))
        return code, capsys.readouterr().out

    return run


def read(path: str, sectors: int = ORIGIN_SECTORS) -> bytes:
    """Read a device past the page cache, which knows nothing of writes below it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, sectors * 512, 0)
    finally:
        os.close(fd)


def write(path: str, sector: int, data: bytes) -> None:
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, sector * 512)
        os.fsync(file.fileno())


def snapshot(disks: Disks, chunk_size: int) -> Table:
    return Table.of(ORIGIN_SECTORS, Snapshot(disks.origin, disks.cow, "P", chunk_size))


def status(mapper: Mapper, table: Table) -> str:
    """Return what the kernel says of a snapshot that it has just activated."""
    with mapper.device("dmcopy-cow-again", table) as device:
        (line,) = mapper.status(device.name)
        return " ".join(line.status.words())


def snapshot_with_changes(mapper: Mapper, disks: Disks, chunk_size: int, changed: int) -> bytes:
    """Have the kernel write a store with `changed` sectors; return the snapshot's content."""
    rnd = random.Random(chunk_size)
    with contextlib.ExitStack() as stack:
        snap = stack.enter_context(mapper.device("dmcopy-cow-snap", snapshot(disks, chunk_size)))
        table = Table.of(ORIGIN_SECTORS, SnapshotOrigin(disks.origin))
        origin = stack.enter_context(mapper.device("dmcopy-cow-origin", table))
        done = 0
        while done < changed:
            length = min(rnd.choice((8, 64, 256)), changed - done)
            sector = rnd.randrange(0, ORIGIN_SECTORS - length) // 8 * 8
            write(origin.path, sector, rnd.randbytes(length * 512))
            done += length
        write(snap.path, 48, rnd.randbytes(4096))
        write(snap.path, ORIGIN_SECTORS - 8, rnd.randbytes(4096))
        return read(snap.path)


@pytest.mark.parametrize(
    ("chunk_size", "changed", "areas"), [(1, 72, 3), (8, 2600, 2), (64, 1500, 1)]
)
def test_what_the_kernel_wrote(
    mapper: Mapper,
    disks: Disks,
    run: Run,
    tmp_path: Path,
    chunk_size: int,
    changed: int,
    areas: int,
) -> None:
    expected = snapshot_with_changes(mapper, disks, chunk_size, changed)
    assert expected != disks.content
    code, out = run("info", "--json", disks.cow)
    info = json.loads(out)
    assert (code, info["valid"], info["chunk_size"]) == (0, True, chunk_size)
    assert info["areas"] >= areas
    assert info["status"] == status(mapper, snapshot(disks, chunk_size))

    dump = json.loads(run("dump", "--json", disks.cow)[1])
    assert len(dump["exceptions"]) == info["exceptions"]
    assert (
        run("check", disks.cow, "--origin", disks.origin, "--chunk-size", str(chunk_size))[0] == 0
    )

    image = tmp_path / "image"
    assert run("extract", "--origin", disks.origin, "--cow", disks.cow, str(image))[0] == 0
    assert image.read_bytes() == expected

    assert run("merge", disks.origin, disks.cow)[0] == 0
    assert read(disks.origin) == expected
    assert run("check", disks.cow, "--origin", disks.origin)[0] == 0
    merged = f"{2 * chunk_size}/{COW_SECTORS} {2 * chunk_size}"
    assert json.loads(run("info", "--json", disks.cow)[1])["status"] == merged
    assert status(mapper, snapshot(disks, chunk_size)) == merged
    with mapper.device("dmcopy-cow-again", snapshot(disks, chunk_size)) as device:
        assert read(device.path) == expected


class Stopping(Mover):
    """A mover that is interrupted when it has flushed the COW `stop_after` times."""

    cow: Device
    stop_after: int

    def flush(self, device: Device) -> None:
        super().flush(device)
        if device is self.cow:
            self.stop_after -= 1
            if not self.stop_after:
                self.interrupt()


def test_the_kernel_goes_on_with_a_merge(
    mapper: Mapper, disks: Disks, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = snapshot_with_changes(mapper, disks, 8, 2800)
    monkeypatch.setattr(merging, "BATCH_BYTES", 64 << 10)
    monkeypatch.setattr("dmcopy.cow.moving.Mover", Stopping)
    with opened_merge(disks.origin, disks.cow) as merge:
        with make_mover(merge.origin.device, chunk_size=8) as mover:
            assert isinstance(mover, Stopping)
            mover.cow, mover.stop_after = merge.store.device, 7
            merge.run(mover)
        assert 0 < merge.merged < merge.exceptions
        left = merge.exceptions - merge.merged
    assert json.loads(run("info", "--json", disks.cow)[1])["exceptions"] == left
    assert run("check", disks.cow, "--origin", disks.origin)[0] == 0

    table = Table.of(ORIGIN_SECTORS, SnapshotMerge(disks.origin, disks.cow, "P", 8))
    with mapper.device("dmcopy-cow-merge", table) as device:
        done = f"0 {ORIGIN_SECTORS} snapshot-merge 16/{COW_SECTORS} 16"
        until(lambda: str(mapper.status(device.name)[0]) == done, f"status {done}")
    assert read(disks.origin) == expected


def test_a_snapshot_that_overflowed(mapper: Mapper, disks: Disks, run: Run, tmp_path: Path) -> None:
    """Three chunks of 1 MiB hold one exception: the second chunk that changes is too much."""
    with contextlib.ExitStack() as stack:
        cow = stack.enter_context(
            mapper.device("dmcopy-cow-small", Table.of(3 * 2048, Linear(disks.cow, 0)))
        )
        table = Table.of(ORIGIN_SECTORS, Snapshot(disks.origin, cow.path, "P", 2048))
        snap = stack.enter_context(mapper.device("dmcopy-cow-snap", table))
        table = Table.of(ORIGIN_SECTORS, SnapshotOrigin(disks.origin))
        origin = stack.enter_context(mapper.device("dmcopy-cow-origin", table))
        write(origin.path, 0, b"x" * 4096)
        write(origin.path, ORIGIN_SECTORS - 8, b"y" * 4096)
        assert str(mapper.status(snap.name)[0]).endswith("snapshot Invalid")
    info = json.loads(run("info", "--json", disks.cow)[1])
    assert (info["valid"], info["status"]) == (False, "Invalid")
    assert status(mapper, snapshot(disks, 2048)) == "Invalid"
    image = tmp_path / "image"
    words = ("extract", "--origin", disks.origin, "--cow", disks.cow, str(image))
    assert run(*words)[0] == ExitCode.MISMATCH
    assert not image.exists()
    assert run(*words, "--changed-only")[0] == 0
    assert image.read_bytes()[: 1 << 20] == disks.content[: 1 << 20]
    assert not any(image.read_bytes()[1 << 20 :])
