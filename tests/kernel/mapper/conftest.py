"""Disks in memory, a mapper with a ledger of its own, and a check that no test leaves a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.block import backing, syscalls
from dmcopy.block.loop import LoopDevice, attach, detach
from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from tests.kernel.snapshot.ioctls import IoctlMapper

SECTORS = 32768


class Disks:
    """Loop devices over files in memory: `a`, `b`, `c`, each of SECTORS sectors."""

    def __init__(self, folder: Path) -> None:
        self.loops: list[LoopDevice] = []
        self._files = [folder / name for name in "abc"]
        for path in self._files:
            path.touch()
            os.truncate(path, SECTORS * 512)
            self.loops.append(attach(path))
        self.a, self.b, self.c = (loop.path for loop in self.loops)

    def wipe(self) -> None:
        """Zero what the targets keep at the beginning of a disk.

        In its file: udev looks at a device that was open for writing, which in an emulated guest
        takes longer than many a test. What somebody has read of it so far is forgotten.
        """
        for loop, path in zip(self.loops, self._files, strict=True):
            with open(loop.path, "rb", buffering=0) as device, open(path, "r+b", 0) as file:
                syscalls.flush_buffers(device.fileno())
                file.write(bytes(1 << 17))
                syscalls.flush_buffers(device.fileno())

    def fill(self, text: str) -> str:
        """Return `text` with A, B, L for the disks."""
        names = {"A": self.a, "B": self.b, "L": self.c}
        return " ".join(names.get(word, word) for word in text.split(" "))


@pytest.fixture(scope="session")
def raw_disks() -> Iterator[Disks]:
    """The disks with whatever is on them."""
    folder = Path("/dev/shm") / f"dmcopy-test-{os.getpid()}"
    folder.mkdir()
    disks = Disks(folder)
    yield disks
    for loop in disks.loops:
        detach(loop)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.fixture
def disks(raw_disks: Disks) -> Disks:
    """The disks, with nothing on them that a target would take for its own."""
    raw_disks.wipe()
    return raw_disks


@pytest.fixture
def mapper(tmp_path: Path, no_device_is_left: None) -> Iterator[KernelMapper]:  # noqa: ARG001
    """A mapper with a ledger of its own, in which no entry may be left."""
    mapper = KernelMapper(ledger=Ledger(tmp_path / "ledger.jsonl"), timeout=60)
    yield mapper
    assert mapper.ledger.entries() == [], "the test left an entry in the ledger"


@pytest.fixture(scope="session")
def ioctls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IoctlMapper]:
    """A mapper without dmsetup, for tests of what the kernel says, not of how it is asked."""
    ledger = Ledger(tmp_path_factory.mktemp("ioctls") / "ledger.jsonl")
    with IoctlMapper(ledger) as mapper:
        yield mapper
    assert mapper.paths == {}, "a test left devices"


def loops() -> dict[str, str]:
    """Return the backing file of each loop device that has one, by the kernel's name for it."""
    return {found.loop: found.path for found in backing.of_all()}
