"""Tables that are loaded read-only: who opens the device is refused, its targets are not.

What is expected here is what both kernels did, 6.1 and 6.12.
"""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Iterator

import pytest

from dmcopy.errors import DeadlineError, DeviceError, UsageError
from dmcopy.io import IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.kcopyd import Client
from dmcopy.table import Table

from .conftest import Engine

ORIGIN = 256
BOTH = " 2 discard_zeroes_cow discard_passdown_origin"


class ReadOnlyEngine(Engine):
    """A userspace engine over simulated disks: o, c and the legs a, b with their log l."""

    def __init__(self) -> None:
        sizes = {"o": ORIGIN, "c": 128, "a": 64, "b": 64, "l": 16}
        super().__init__(*(SimulatedDisk(size, name) for name, size in sizes.items()))
        for seed, name in enumerate("oab"):
            self.disks[name].load(random.Random(seed).randbytes(sizes[name] << 9))
        self.write_protected: set[str] = set()

    def open(self, path: str, write: bool) -> SimulatedDisk:
        if write and path in self.write_protected:
            raise DeviceError(path, "open it for writing", errno.EACCES)
        disk = self.disks[path]
        disk.read_only = not write
        if path in self.write_protected:
            disk.fail(Op.WRITE, 0, disk.sectors, error=errno.EBADF)
        return disk

    def read(self, name: str, sector: int = 0, count: int = 8) -> bytes:
        return self.mapper.open(name).read(sector, count)

    def write(self, name: str, sector: int = 0, count: int = 8) -> None:
        self.mapper.open(name).write(sector, b"w" * (count << 9))

    def refuses(self, name: str) -> bool:
        """Whether the device refuses everything that changes it, and lets itself be flushed."""
        device = self.mapper.open(name)
        device.flush()
        for act in (device.zero_out, device.discard):
            with pytest.raises(UsageError, match="read-only"):
                act(0, 8)
        with pytest.raises(UsageError, match="read-only"):
            device.write(0, bytes(512))
        done: list[Io] = []  # nor does it take what was not checked before
        for op in (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES):
            extents = [(0, 512)] if op is Op.WRITE else []
            request = Io(op, IoRegion(device, 0, 1), Memory(1), extents, done.append)
            self.mapper.reactor.submit(request)
        self.mapper.reactor.run_until(lambda: len(done) == 3, 60, "requests that are refused")
        assert [one.error for one in done] == [errno.EPERM] * 3
        assert not device.in_flight
        return self.mapper.info(name).readonly

    def pause(self, *names: str) -> None:
        for name in names:
            self.mapper.suspend(name)
        for name in reversed(names):
            self.mapper.resume(name)

    def wait(self, name: str, status: str) -> None:
        self.mapper.reactor.run_until(lambda: self.status(name) == status, 60, status)


@pytest.fixture
def engine() -> Iterator[ReadOnlyEngine]:
    with ReadOnlyEngine() as made:
        yield made


@pytest.mark.parametrize(
    ("store", "new", "full"),
    [
        ("P", "16/128 16", "24/128 16"),
        ("PO", "16/128 16", "24/128 16"),
        ("N", "0/128 0", "8/128 0"),
    ],
)
def test_a_snapshot_keeps_what_its_origin_loses(
    engine: ReadOnlyEngine, store: str, new: str, full: str
) -> None:
    engine.make("o", f"0 {ORIGIN} snapshot-origin o")
    engine.make("s", f"0 {ORIGIN} snapshot o c {store} 8", readonly=True)
    engine.pause("o")
    assert engine.refuses("s")
    assert engine.status("s") == new
    assert (engine.disks["c"].read(0, 1)[:4] == b"SnAp") == (store != "N")
    before = engine.read("s", 80)
    engine.write("o", 80)
    assert engine.status("s") == full
    assert engine.read("s", 80) == before
    for chunk in range(20):
        engine.write("o", chunk * 8)
    assert engine.status("s") == "Invalid"
    if store != "N":
        assert engine.disks["c"].read(0, 1)[4:8] == bytes(4)  # and the store says so, too


@pytest.mark.parametrize("store", ["P", "N"])
def test_a_live_snapshot_becomes_read_only_and_back(engine: ReadOnlyEngine, store: str) -> None:
    table = f"0 {ORIGIN} snapshot o c {store} 8"
    engine.make("o", f"0 {ORIGIN} snapshot-origin o")
    engine.make("s", table)
    engine.pause("o")
    engine.write("s")
    engine.mapper.load("s", Table.parse(table), readonly=True)
    assert not engine.mapper.info("s").readonly
    engine.pause("o", "s")
    assert engine.refuses("s")
    engine.write("o", 80)
    used = 16 if store == "N" else 32
    assert engine.status("s").startswith(f"{used}/")
    engine.mapper.load("s", Table.parse(table))
    engine.pause("o", "s")
    engine.write("s", 8)
    assert engine.status("s").startswith(f"{used + 8}/")


def test_a_merge_goes_on(engine: ReadOnlyEngine) -> None:
    store = bytearray(engine.disks["c"].read(0, 128))
    struct.pack_into("<4I", store, 0, 0x70416E53, 1, 1, 8)
    struct.pack_into("<2Q", store, 8 << 9, 3, 2)
    store[16 << 9 : 24 << 9] = b"m" * (8 << 9)
    engine.disks["c"].load(store)
    engine.make("m", f"0 {ORIGIN} snapshot-merge o c P 8", readonly=True)
    engine.wait("m", "16/128 16")
    assert engine.disks["o"].read(24, 8) == b"m" * (8 << 9)
    assert engine.refuses("m")


@pytest.mark.parametrize("sync", ["", "sync", "nosync"])
@pytest.mark.parametrize("log", ["core 1 8", "disk 2 l 8"])
def test_a_mirror_recovers(engine: ReadOnlyEngine, log: str, sync: str) -> None:
    kind, count, *rest = log.split()
    words = " ".join([kind, str(int(count) + bool(sync)), *rest, *sync.split()])
    engine.make("m", f"0 64 mirror {words} 2 a 0 b 0", readonly=True)
    tail = "1 core" if kind == "core" else "3 disk l A"
    engine.wait("m", f"2 a b 8/8 1 AA {tail}")
    if sync != "nosync":
        assert engine.disks["a"].read(0, 64) == engine.disks["b"].read(0, 64)
    assert engine.refuses("m")
    if kind == "disk":
        engine.mapper.suspend("m")
        assert engine.disks["l"].read(0, 1)[:4] == b"rRiM"
        assert engine.disks["l"].read(2, 1)[:1] == b"\xff"
        engine.mapper.resume("m")


def test_what_is_above_writes_through(engine: ReadOnlyEngine) -> None:
    """Only who opens a read-only device is refused, not a device above it."""
    engine.make("ro", "0 64 linear a 0", readonly=True)
    engine.make("top", "0 64 linear /dev/mapper/ro 0")
    top = engine.mapper.open("top")
    engine.write("top", 0)
    top.zero_out(8, 8)
    top.discard(16, 8)
    assert engine.disks["a"].read(0, 24) == b"w" * 4096 + bytes(8192)
    assert engine.refuses("ro")
    with Client(16, reactor=engine.mapper.reactor) as client:
        region = IoRegion(engine.mapper.open("ro"), 0, 8)
        with pytest.raises(UsageError, match="read-only"):
            client.copy(IoRegion(engine.disks["b"], 0, 8), [region])


def test_a_store_a_log_and_legs_on_read_only_devices(engine: ReadOnlyEngine) -> None:
    for name, size in (("o", ORIGIN), ("c", 128), ("a", 64), ("b", 64), ("l", 16)):
        engine.make(f"ro-{name}", f"0 {size} linear {name} 0", readonly=True)
    engine.make("o", f"0 {ORIGIN} snapshot-origin /dev/mapper/ro-o")
    engine.make("s", f"0 {ORIGIN} snapshot /dev/mapper/ro-o /dev/mapper/ro-c P 8")
    engine.pause("o")
    engine.write("o", 80)
    engine.write("s", 0, 4)
    assert engine.status("s") == "32/128 16"
    legs = "2 /dev/mapper/ro-a 0 /dev/mapper/ro-b 0"
    engine.make("m", f"0 64 mirror disk 2 /dev/mapper/ro-l 8 {legs}")
    names = legs.replace(" 0", "")
    engine.wait("m", f"{names} 8/8 1 AA 3 disk /dev/mapper/ro-l A")
    assert engine.disks["a"].read(0, 64) == engine.disks["b"].read(0, 64)


def test_a_read_only_snapshot_takes_the_bios_of_a_device_above(engine: ReadOnlyEngine) -> None:
    engine.make("s", f"0 {ORIGIN} snapshot o c P 8{BOTH}", readonly=True)
    engine.make("top", f"0 {ORIGIN} linear /dev/mapper/s 0")
    engine.write("top", 0)
    assert engine.status("s") == "24/128 16"
    engine.mapper.open("top").discard(80, 8)
    assert engine.disks["o"].read(80, 8) == bytes(8 << 9)


@pytest.mark.parametrize("origin", ["o", "/dev/mapper/ro"])
def test_a_discard_is_passed_down(engine: ReadOnlyEngine, origin: str) -> None:
    engine.make("ro", f"0 {ORIGIN} linear o 0", readonly=True)
    engine.make("s", f"0 {ORIGIN} snapshot {origin} c P 8{BOTH}")
    engine.mapper.open("s").discard(8, 8)
    assert engine.disks["o"].read(8, 8) == bytes(8 << 9)
    assert engine.status("s") == "16/128 16"


def test_the_table_says_whether_it_is_read_only_and_not_the_device(engine: ReadOnlyEngine) -> None:
    linear = Table.parse("0 64 linear a 0")
    engine.mapper.create("d", readonly=True)
    assert not engine.mapper.info("d").readonly
    for readonly in (True, False):
        engine.mapper.load("d", linear, readonly=readonly)
        engine.pause("d")
        assert engine.mapper.info("d").readonly == readonly


def test_what_cannot_be_written_can_be_read(engine: ReadOnlyEngine) -> None:
    """A read-only table is content with devices that cannot be opened for writing."""
    engine.write_protected = {"a", "b", "o"}
    with pytest.raises(DeviceError, match="Permission denied"):
        engine.make("d", "0 64 linear a 0")
    engine.make("d", "0 64 linear a 0", readonly=True)
    assert engine.read("d") == engine.disks["a"].read(0, 8)
    engine.make("s", f"0 {ORIGIN} snapshot o c P 8")  # an origin is only read
    engine.write("s")
    engine.make("synced", "0 64 mirror core 2 8 nosync 2 a 0 b 0", readonly=True)
    assert engine.read("synced") == engine.disks["a"].read(0, 8)
    engine.make("m", "0 64 mirror core 1 8 2 a 0 b 0 1 handle_errors", readonly=True)
    with pytest.raises(DeadlineError):
        engine.mapper.reactor.run_until(lambda: False, 1)
    assert engine.status("m") == "2 a b 0/8 1 AS 1 core"


def test_error_writes_to_nothing(engine: ReadOnlyEngine) -> None:
    """Its device lends a block size: it may be one that cannot be written to, or that is in use."""
    engine.write_protected.add("a")
    engine.mapper.create("d", Table.parse("0 8 error a 0"))
    assert engine.mapper.exists("d")
