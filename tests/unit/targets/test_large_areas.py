"""Areas that are read in several pieces, as those of large chunks are."""

from __future__ import annotations

import mmap
from typing import Self

import pytest

from dmcopy.errors import DeviceError, MissingError
from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.ondisk.exception_store import StoreHeader
from dmcopy.table import Table
from dmcopy.targets import persistent

SECTORS = 3200


def test_a_second_area_has_nothing_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Area 0 is full; area 1 is loaded by its first piece alone, and continues into its second."""
    monkeypatch.setattr(persistent, "PIECE_BYTES", 1024)
    disks = {"origin": SimulatedDisk(SECTORS, "origin"), "cow": SimulatedDisk(3200, "cow")}
    with Reactor(SimulatedBackend(), stacked=True) as reactor:
        for chunks in (range(260), range(260, 360), range(360, 361)):
            with UserMapper(reactor, open_device=lambda path, _write: disks[path]) as mapper:
                mapper.create("s", Table.parse(f"0 {SECTORS} snapshot origin cow P 8"))
                assert len(mapper.open("s").active.targets[0].exceptions) == chunks[0]  # type: ignore[union-attr]
                for chunk in chunks:
                    mapper.open("s").write(chunk * 8, b"new!" * 1024)


def test_a_machine_too_small_for_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 1 GiB want as much memory, whether the table asks for them or the header."""
    cow = SimulatedDisk(SECTORS, "cow")
    disks = {"origin": SimulatedDisk(SECTORS, "origin"), "cow": cow}

    class Small(mmap.mmap):
        def __new__(cls, number: int, size: int, **how: int) -> Self:
            if size > 1 << 29:
                raise OSError(12, "Cannot allocate memory")
            return super().__new__(cls, number, size, **how)

    monkeypatch.setattr(mmap, "mmap", Small)
    with (
        Reactor(SimulatedBackend(), stacked=True) as reactor,
        UserMapper(reactor, open_device=lambda path, _write: disks[path]) as mapper,
    ):
        with pytest.raises(MissingError, match="no memory for 1 GiB"):
            mapper.create("s", Table.parse(f"0 {SECTORS} snapshot origin cow P {1 << 21}"))
        cow.load(StoreHeader(True, 1, 1 << 21).build() + bytes(SECTORS * 512 - 16))
        before = cow.read(0, 8)
        with pytest.raises(DeviceError, match="no memory for 1 GiB"):
            mapper.create("s", Table.parse(f"0 {SECTORS} snapshot origin cow P 8"))
        assert cow.read(0, 8) == before
        mapper.create("s", Table.parse(f"0 {SECTORS} snapshot origin cow N 8"))
