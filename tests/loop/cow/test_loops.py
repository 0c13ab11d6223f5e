"""dmcopy cow on loop devices: claims, large blocks, and a merge that is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.cow.check import check
from dmcopy.cow.store import open_cow, read_store
from dmcopy.errors import ExitCode
from tests.loop.conftest import LoopFactory
from tests.unit.cow.stores import Pairs, allocate, build, overlay, scattered

CHUNKS = 2000
DEADLINE_SECONDS = 60

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cow(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(("cow", *words))
        out, err = capsys.readouterr()
        return code, out, err

    return run


class Devices:
    """An origin and its COW with chunks of 4 KiB, and what the snapshot reads as."""

    def __init__(self, loops: LoopFactory, block: int = 512) -> None:
        self.origin = loops(CHUNKS * 8, sector_size=block)[0].path
        self.cow = loops((CHUNKS + 20) * 8, sector_size=block)[0].path
        self.out = loops(CHUNKS * 8, sector_size=block)[0].path
        self.pairs: Pairs = allocate(scattered(1500, CHUNKS), 8)
        origin = random.Random(4).randbytes(CHUNKS * 4096)
        store = build(8, self.pairs, CHUNKS + 20)
        self.content = overlay(origin, store, 8, self.pairs)
        for path, data in ((self.origin, origin), (self.cow, store)):
            with open(path, "r+b", buffering=0) as file:
                assert os.pwrite(file.fileno(), data, 0) == len(data)
                os.fsync(file.fileno())


def read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(file.fileno(), CHUNKS * 4096, 0)


@pytest.mark.parametrize("block", [512, 4096])
def test_extract_and_merge(loops: LoopFactory, cow: Run, block: int) -> None:
    devices = Devices(loops, block)
    assert cow("check", devices.cow, "--origin", devices.origin)[0] == 0
    words = ("extract", "--origin", devices.origin, "--cow", devices.cow)
    assert cow(*words, devices.out)[0] == 0
    assert read(devices.out) == devices.content
    assert cow("merge", devices.origin, devices.cow)[0] == 0
    assert read(devices.origin) == devices.content
    assert json.loads(cow("info", "--json", devices.cow)[1])["exceptions"] == 0


def test_chunks_smaller_than_blocks(loops: LoopFactory, cow: Run) -> None:
    """The kernel refuses such a table; looking at the store works all the same."""
    path = loops(400, sector_size=4096)[0].path
    origin = loops(400, sector_size=4096)[0].path
    with open(path, "r+b") as file:
        file.write(build(1, allocate(range(100), 1), 400))
    assert cow("dump", path)[1].count("\n") == 100
    code, out, _ = cow("check", path)
    assert (code, "byte 12: chunks of 512 bytes are not whole blocks" in out) == (4, True)
    assert "the kernel would not put them together" in cow("merge", origin, path)[2]


@pytest.mark.parametrize("held", ["origin", "cow"])
def test_a_device_in_use_is_not_merged(loops: LoopFactory, cow: Run, held: str) -> None:
    devices = Devices(loops)
    fd = os.open(getattr(devices, held), os.O_RDWR | os.O_EXCL)
    try:
        code, _, err = cow("merge", devices.origin, devices.cow)
        assert code == ExitCode.BUSY
        assert f"{getattr(devices, held)} is in use by" in err
        assert cow("extract", "--origin", devices.origin, "--cow", devices.cow, devices.out)[0] == 0
    finally:
        os.close(fd)


def test_a_merge_that_is_killed_goes_on(loops: LoopFactory) -> None:
    """Killed again and again, each time at another moment: whatever is left is the snapshot."""
    devices = Devices(loops)
    script = (  # a pause after each batch, or it might be done before it is looked at
        "import sys, time; from dmcopy.cow import merge; merge.BATCH_BYTES = 64 << 10\n"
        "settle = merge.Merge._settle\n"
        "merge.Merge._settle = lambda *words: (settle(*words), time.sleep(0.02))\n"
        "from dmcopy.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", script, "cow", "merge", devices.origin, devices.cow]
    deadline, left, killed = time.monotonic() + DEADLINE_SECONDS, len(devices.pairs), 0
    while left:
        assert time.monotonic() < deadline
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        before = entries(devices.cow)
        while process.poll() is None and entries(devices.cow) > before - 400:
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait(DEADLINE_SECONDS)
        with open_cow(devices.cow) as device:
            assert not check(device).errors
        left = entries(devices.cow)
    assert killed
    assert read(devices.origin) == devices.content


def entries(path: str) -> int:
    with open_cow(path) as device:
        return sum(len(entries.pairs) // 2 for entries in read_store(device).entries())


def test_progress_as_json(loops: LoopFactory, cow: Run, tmp_path: Path) -> None:
    devices = Devices(loops)
    image = tmp_path / "image"
    words = ("extract", "--origin", devices.origin, "--cow", devices.cow, str(image))
    code, _, err = cow(*words, "--progress", "json")
    last = json.loads(err.splitlines()[-1])
    assert (code, last["phase"], last["sectors"], last["total"]) == (0, "extract", 16000, 16000)
    assert image.read_bytes() == devices.content
