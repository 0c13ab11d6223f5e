"""Disks in memory for mirrors, a file system that is written to all the time, and what to check."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Linear, Mirror, Table
from dmcopy.testing.disks import Disks
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.mirror_resync import ignore
from dmcopy.workflows.session import Session
from tests.kernel.programs import run

SECTORS = 16384
FILES = 12
DEADLINE = 240.0
PAUSE = 0.03
"""Seconds between two files: without, what is done to the mirror hardly gets a turn in a guest."""


class Rig:
    """The disks `a` to `d`, a mapper and a journal of their own."""

    def __init__(self, folder: Path, disks: Disks) -> None:
        self.folder = folder
        self.a, self.b, self.c, self.d = disks.paths.values()
        self.mapper = KernelMapper(ledger=Ledger(folder / "ledger.jsonl"), timeout=DEADLINE)
        self.journal = Journal(folder / "journal")
        self.mounted = ""

    def session(self, observer: Callable[..., None] = ignore) -> Session:
        """Return a session with a deadline on nothing: give one to each wait."""
        return Session(self.mapper, self.journal, observer)

    def home(self) -> None:
        """Make the device `home` of disk a, with ext4, mounted."""
        self.mapper.create("home", Table.of(SECTORS, Linear(self.a, 0)), keep=True)
        run("mkfs.ext4", "-q", "-O", "^has_journal,^resize_inode", "/dev/mapper/home")
        self.mount()

    def mount(self) -> Path:
        point = self.folder / "mnt"
        point.mkdir(exist_ok=True)
        run("mount", "/dev/mapper/home", str(point))
        self.mounted = str(point)
        return point

    def umount(self) -> None:
        run("umount", self.mounted)
        self.mounted = ""

    def ended(self, load: Load) -> dict[str, str]:
        """End a load, unmount `home`, and check files and file system; return the sums."""
        sums = load.stop()
        check_files(Path(self.mounted), sums)
        self.umount()
        check_file_system("/dev/mapper/home")
        return sums

    def remove(self, *names: str) -> None:
        for name in names:
            self.mapper.remove(name)

    def legs_agree(self) -> None:
        """Compare the legs of `home`, which is not in use, byte by byte."""
        target = self.mapper.table("home").lines[0].target
        assert isinstance(target, Mirror)
        first, *others = (content(f"/dev/block/{leg.device}", leg.offset) for leg in target.legs)
        assert all(first == other for other in others)


class Load:
    """Writes files and syncs each, until `stop`; held writes are waited for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sums: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self.error: BaseException | None = None
        self.count = 0
        self._thread.start()

    def _write(self) -> None:
        chance = random.Random(6)
        try:
            while not self._stopping.is_set():
                name = f"file{self.count % FILES}"
                data = chance.randbytes(chance.randrange(1, 16) << 10)
                self._sums.pop(name, None)
                with (self._folder / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._sums[name] = hashlib.sha256(data).hexdigest()
                self.count += 1
                self._stopping.wait(PAUSE)
        except OSError as error:
            self.error = error

    def goes_on(self, more: int = 3) -> None:
        """Wait until `more` more files are written."""
        wanted = self.count + more
        eventually(lambda: self.count >= wanted or self.error is not None, "the load goes on")
        assert self.error is None

    def stop(self) -> dict[str, str]:
        """End it; return the sum of each file that was synced."""
        self._stopping.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "a write is still held"
        assert self.error is None
        return self._sums


def check_files(folder: Path, sums: dict[str, str]) -> None:
    assert sums
    for name, expected in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name


def check_file_system(device: str) -> None:
    done = subprocess.run(
        ["e2fsck", "-fn", device], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def content(device: str, offset: int = 0) -> bytes:
    fd = os.open(device, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, SECTORS * 512, offset * 512)
    finally:
        os.close(fd)


def eventually(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not ready():
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what}"
        time.sleep(0.05)
