"""`dmcopy copy` on real disks: one to two, a disk that fails, one that goes away, one in use."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import ExitCode
from tests.kernel.programs import run
from tests.waiting import Program

pytestmark = pytest.mark.kernel(either=True, cost=5)

COPIED = 8 << 20
SECTORS = COPIED // 512
BAD = (4096, 4352)


def dmcopy(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `dmcopy copy` in this process: a new Python takes seconds to start in a guest."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["copy", "--progress=none", *words])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def content(path: Path, size: int = COPIED) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


@pytest.fixture
def source(scratch_disks: list[Path]) -> Path:
    """The first disk, with random content at its beginning."""
    disk = scratch_disks[0]
    with disk.open("r+b", buffering=0) as file:
        file.write(os.urandom(COPIED))
        os.fsync(file)
    return disk


@contextlib.contextmanager
def failing(lower: Path, target: str) -> Iterator[Path]:
    """A device over `lower` whose BAD sectors are on another target, which cannot be written."""
    start, end = BAD
    table = (
        f"0 {start} linear {lower} 0\n"
        f"{start} {end - start} {target}\n"
        f"{end} {SECTORS - end} linear {lower} {end}\n"
    )
    with mapped("failing", table) as path:
        yield Path(path)


@contextlib.contextmanager
def mapped(name: str, table: str) -> Iterator[str]:
    name = f"dmcopy-rig-{name}"
    subprocess.run(["dmsetup", "create", name], input=table, text=True, check=True, timeout=60)
    try:
        yield f"/dev/mapper/{name}"
    finally:
        run("dmsetup", "remove", "--retry", name)


@pytest.fixture
def scsi_disk() -> Iterator[Path]:
    """A slow disk in memory that can be pulled out."""
    before = set(Path("/sys/block").iterdir())
    run("modprobe", "scsi_debug", "dev_size_mb=64", "delay=20")
    deadline = time.monotonic() + 60
    while not (new := [p for p in Path("/sys/block").iterdir() if p not in before]):
        assert time.monotonic() < deadline, "no scsi_debug disk within 60 s"
        time.sleep(0.1)
    run("udevadm", "settle", "--timeout=60")
    yield Path("/dev") / new[0].name
    run("udevadm", "settle", "--timeout=60")
    run("modprobe", "-r", "scsi_debug")


def test_one_disk_to_two_others(source: Path, scratch_disks: list[Path]) -> None:
    one, two = scratch_disks[1:3]
    done = dmcopy("--count", f"{COPIED}B", "--verify", str(source), str(one), str(two))
    assert done.returncode == ExitCode.OK, done.stderr
    assert content(source) == content(one) == content(two) != bytes(COPIED)


def test_a_disk_and_what_is_mapped_to_it(source: Path, scratch_disks: list[Path]) -> None:
    before = content(source)
    over = f"0 8192 linear {source} 2048\n8192 1024 linear {scratch_disks[1]} 0"
    with mapped("over", over) as one, mapped("delayed", f"0 8192 delay {one} 0 0") as two:
        done = dmcopy("--count", "8192", str(source), two)
        assert done.returncode == ExitCode.USAGE
        assert "overlaps the source" in done.stderr
        assert "it is the same storage" in done.stderr
        assert content(source) == before
        # Sectors 0 to 1024 to 2048 to 3072. Not to `one`, which the other holds.
        apart = dmcopy("--count", "1024", str(source), two)
        assert apart.returncode == ExitCode.OK, apart.stderr
    wanted = before[: 2048 * 512] + before[: 1024 * 512] + before[3072 * 512 :]
    assert content(source) == wanted


def test_destinations_that_are_mapped_to_the_same_disk(
    source: Path, scratch_disks: list[Path]
) -> None:
    one, two = scratch_disks[1:3]
    before = content(one)
    stripes = f"0 8192 striped 2 64 {one} 0 {two} 0"
    with (
        mapped("linear", f"0 8192 linear {one} 4000") as linear,
        mapped("striped", stripes) as dest,
    ):
        for pair in ((linear, dest), (dest, linear)):
            done = dmcopy("--count", "1024", str(source), *pair)
            assert done.returncode == ExitCode.USAGE
            assert "overlaps another destination" in done.stderr
            assert "both are on the same storage, and where cannot be told" in done.stderr
        assert content(one) == before
    apart = f"0 8192 linear {one} 4096"
    with mapped("linear", apart) as linear, mapped("striped", stripes) as dest:
        done = dmcopy("--count", "1024", "--verify", str(source), linear, dest)
        assert done.returncode == ExitCode.OK, done.stderr


def test_the_failed_range_is_told_to_the_sector(source: Path, scratch_disks: list[Path]) -> None:
    good, lower = scratch_disks[1], scratch_disks[3]
    with failing(lower, "error") as bad:
        done = copy_skipping(source, good, bad)
        failed = _destination(json.loads(done.stdout), bad)["failed"]
        assert failed[0]["sector"] == BAD[0]
        assert sum(piece["count"] for piece in failed) == BAD[1] - BAD[0]
    assert content(good) == content(source)
    assert content(lower)[: BAD[0] * 512] == content(source)[: BAD[0] * 512]
    assert content(lower)[BAD[1] * 512 :] == content(source)[BAD[1] * 512 :]


@pytest.mark.kernel(either=False)
def test_a_destination_on_flakey_that_fails_part_way(
    source: Path, scratch_disks: list[Path]
) -> None:
    """dm-flakey fails flushes along with writes, so nothing on that destination counts as safe."""
    good, lower = scratch_disks[1], scratch_disks[3]
    with failing(lower, f"flakey {lower} {BAD[0]} 0 3600 1 error_writes") as bad:
        done = copy_skipping(source, good, bad)
        facts = _destination(json.loads(done.stdout), bad)
    assert not facts["ok"]
    assert facts["failed"][0]["sector"] <= BAD[0]
    assert sum(piece["count"] for piece in facts["failed"]) >= BAD[1] - BAD[0]
    assert content(good) == content(source)


def copy_skipping(source: Path, *dests: Path) -> subprocess.CompletedProcess[str]:
    words = ("--count", f"{COPIED}B", "--on-error", "skip", "--json")
    done = dmcopy(*words, str(source), *map(str, dests))
    assert done.returncode == ExitCode.PARTIAL, done.stderr
    return done


def _destination(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    (found,) = [dest for dest in facts["destinations"] if dest["path"] == str(path)]
    return dict(found)


def test_a_destination_that_is_pulled_out(source: Path, scsi_disk: Path) -> None:
    argv = [sys.executable, "-m", "dmcopy", "copy", "--progress=none", "--count", "64M"]
    with Program(
        [*argv, "--piece", "64K", str(source), str(scsi_disk)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        stat = Path("/sys/block") / scsi_disk.name / "stat"
        deadline = time.monotonic() + 120
        while int(stat.read_text().split()[6]) < 64:  # sectors written
            assert process.poll() is None, "the copy was over too soon"
            assert time.monotonic() < deadline, "nothing was written within 120 s"
            time.sleep(0.01)
        (Path("/sys/block") / scsi_disk.name / "device/delete").write_text("1")
        said, _ = process.communicate(timeout=120)
    assert process.returncode in (ExitCode.FAILED, ExitCode.PARTIAL), said
    assert scsi_disk.name in said
    assert "Traceback" not in said


def test_a_mounted_destination_is_refused(
    source: Path, scratch_disks: list[Path], tmp_path: Path
) -> None:
    disk = scratch_disks[1]
    run("mkfs.ext4", "-q", "-F", str(disk))
    run("mount", str(disk), str(tmp_path))
    try:
        done = dmcopy("--count", "1M", str(source), str(disk))
        assert done.returncode == ExitCode.BUSY
        assert str(tmp_path) in done.stderr
    finally:
        run("umount", str(tmp_path))
