"""I/O of targets past the end of a device, by damaged metadata or because the device has shrunk.

It ends with an error, as in the kernel: lines, statuses and bytes are those of 6.1 and 6.12.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from dmcopy.errors import DeviceError
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.mapper.mapped import MappedDevice
from dmcopy.mapper.userspace import UserMapper
from dmcopy.ondisk.exception_store import ENTRY, StoreHeader
from dmcopy.table import Table
from dmcopy.targets.linear import Linear

from .conftest import BareEngine

CHUNK = 8
CHUNK_BYTES = CHUNK << 9
COW_CHUNKS = 64
LAST = (1 << 64) - 1


def chunk_of(letter: str) -> bytes:
    return letter.encode() * CHUNK_BYTES


def store(exceptions: Sequence[tuple[int, int]]) -> bytes:
    """Return a COW that says so; COW chunk n holds the letter number n."""
    data = bytearray(COW_CHUNKS * CHUNK_BYTES)
    header = StoreHeader(True, 1, CHUNK).build()
    data[: len(header)] = header
    for index, exception in enumerate(exceptions):
        ENTRY.pack_into(data, CHUNK_BYTES + index * ENTRY.size, *exception)
    for chunk in range(2, COW_CHUNKS):
        data[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES] = chunk_of(chr(ord("a") + chunk % 26))
    return bytes(data)


class Bench(BareEngine):
    """An engine over simulated disks: an origin o of `.`, a COW c. What callbacks raise is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.add("o", b"." * (64 * CHUNK_BYTES))
        self.add("c", bytes(COW_CHUNKS * CHUNK_BYTES))
        self.raised: list[BaseException] = []
        self.reactor.on_exception = self.raised.append

    def add(self, name: str, content: bytes) -> None:
        self.disks[name] = SimulatedDisk(len(content) >> 9, name)
        self.disks[name].load(content)

    def make(self, text: str, name: str = "m") -> MappedDevice:
        self.mapper.create(name, Table.parse(text))
        return self.mapper.open(name)

    def merge(
        self, exceptions: Sequence[tuple[int, int]], origin: int = 64 * CHUNK
    ) -> MappedDevice:
        """Merge a store with these exceptions until nothing happens any more."""
        self.disks["c"].load(store(exceptions))
        device = self.make(f"0 {origin} snapshot-merge o c P {CHUNK}")
        self.settle()
        return device

    def status(self, name: str = "m") -> str:
        return str(self.mapper.status(name)[0].status)

    def shrink(self, name: str, disk: str, sectors: int) -> None:
        self.mapper.suspend(name)
        self.mapper.load(name, Table.parse(f"0 {sectors} linear {disk} 0"))
        self.mapper.resume(name)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made
    assert not made.raised


def error_of(action: Callable[[], object]) -> int:
    with pytest.raises(DeviceError) as caught:
        action()
    assert caught.value.errno
    return caught.value.errno


def test_a_merge_of_a_chunk_that_the_origin_does_not_have_fails(bench: Bench) -> None:
    bench.add("o", b"." * (100 << 9))
    device = bench.merge([(1, 2), (20, 3), (2, 4)], origin=100)
    assert bench.status() == "Merge failed"
    # What was merged before is in the origin, what was not is still read from the COW.
    assert bench.disks["o"].content == chunk_of(".") * 2 + chunk_of("e") + b"." * (76 << 9)
    assert device.read(0, 100) == chunk_of(".") + chunk_of("c") + chunk_of("e") + b"." * (76 << 9)
    bench.mapper.suspend("m")


def test_a_chunk_that_the_origin_ends_in_is_merged_as_far_as_it_goes(bench: Bench) -> None:
    bench.add("o", b"." * (20 << 9))
    bench.merge([(1, 2), (2, 3)], origin=20)
    assert bench.status() == "16/512 16"
    assert bench.disks["o"].content == chunk_of(".") + chunk_of("c") + chunk_of("d")[: 4 << 9]


def test_a_chunk_right_behind_the_origin_is_merged_into_nothing(bench: Bench) -> None:
    bench.add("o", b"." * (16 << 9))
    bench.merge([(1, 2), (2, 3)], origin=16)
    assert bench.status() == "16/512 16"
    assert bench.disks["o"].content == chunk_of(".") + chunk_of("c")


def test_a_merge_of_a_chunk_that_the_cow_does_not_have_fails(bench: Bench) -> None:
    device = bench.merge([(1, 2), (2, 100), (3, 4)])
    assert bench.status() == "Merge failed"
    assert error_of(lambda: device.read(0, 64)) == errno.EIO
    device.write(8, chunk_of("1"))
    assert error_of(lambda: device.write(16, chunk_of("2"))) == errno.EIO
    device.write(24, chunk_of("3"))
    assert bench.status() == "Merge failed"
    assert bench.disks["c"].read(16, 8) == chunk_of("1")
    assert bench.disks["o"].read(0, 32) == chunk_of(".") * 3 + chunk_of("3")
    assert len(bench.disks["c"].content) == COW_CHUNKS * CHUNK_BYTES
    bench.mapper.suspend("m")


def test_a_chunk_that_is_named_twice_is_merged_twice(bench: Bench) -> None:
    bench.merge([(5, 2), (5, 3), (5, 4)])
    assert bench.status() == "16/512 16"
    assert bench.disks["o"].read(40, 8) == chunk_of("c")


def test_a_discard_of_a_chunk_that_the_cow_does_not_have_fails(bench: Bench) -> None:
    bench.disks["c"].load(store([(5, 200)]))
    device = bench.make(f"0 512 snapshot o c P {CHUNK} 1 discard_zeroes_cow")
    assert error_of(lambda: device.read(40, 8)) == errno.EIO
    assert error_of(lambda: device.discard(40, 8)) == errno.EIO
    assert bench.status() == "1608/512 16"
    assert device.read(0, 8) == chunk_of(".")
    bench.mapper.suspend("m")


def test_a_write_never_makes_a_file_longer(tmp_path: Path) -> None:
    for name, data in (("o", bytes(64 * CHUNK_BYTES)), ("c", store([(5, 200)]))):
        (tmp_path / name).write_bytes(data)
    with UserMapper() as mapper:
        words = f"snapshot {tmp_path}/o {tmp_path}/c P {CHUNK}"
        mapper.create("s", Table.parse(f"0 512 {words}"))
        for count in (1, CHUNK):
            data = bytes(count << 9)
            assert error_of(partial(mapper.open("s").write, 40, data)) == errno.EIO
        assert (tmp_path / "c").stat().st_size == COW_CHUNKS * CHUNK_BYTES


def test_the_largest_chunk_numbers_wrap(bench: Bench) -> None:
    bench.disks["c"].load(store([(1, 2), (LAST, LAST), (3, 4)]))
    device = bench.make(f"0 512 snapshot o c P {CHUNK}")
    assert bench.status() == "40/512 16"
    assert device.read(0, 32) == b"".join(map(chunk_of, ".c.e"))
    device.write(80, chunk_of("1"))
    assert bench.status() == "48/512 16"
    assert bench.disks["c"].read(40, 8) == chunk_of("1")


def test_a_chunk_number_that_no_cow_has_is_an_error_of_the_cow(bench: Bench) -> None:
    """`next_free` is so high that its sectors wrap: there seems to be room, and the copy fails."""
    bench.disks["c"].load(store([(1, LAST - 1)]))
    device = bench.make(f"0 512 snapshot o c PO {CHUNK}")
    assert error_of(lambda: device.write(80, chunk_of("1"))) == errno.EIO
    assert bench.status() == "Invalid"


@pytest.mark.parametrize("size", [CHUNK, 2 * CHUNK - 1])
def test_a_cow_of_one_chunk_fails_with_its_header_written(bench: Bench, size: int) -> None:
    bench.add("c", bytes(512) + b"x" * ((size - 1) << 9))
    with pytest.raises(DeviceError) as caught:
        bench.make(f"0 512 snapshot o c P {CHUNK}")
    assert caught.value.errno == errno.EIO
    header = struct.pack("<4I", 0x70416E53, 1, 1, CHUNK)
    assert bench.disks["c"].content == header.ljust(CHUNK_BYTES, b"\0") + b"x" * (
        (size - CHUNK) << 9
    )


def test_a_cow_of_less_than_a_chunk_is_left_alone(bench: Bench) -> None:
    bench.add("c", bytes(15 << 9))
    with pytest.raises(DeviceError):
        bench.make("0 512 snapshot o c P 16")
    assert bench.disks["c"].content == bytes(15 << 9)


def test_of_a_mirror_only_the_leg_fails_that_has_shrunk(bench: Bench) -> None:
    bench.add("a", b"." * (64 << 9))
    bench.add("b", bytes(64 << 9))
    bench.make("0 64 linear b 0", "below")
    bench.mapper.create("m")
    words = "core 1 16 2 a 0 /dev/mapper/below 0 1 handle_errors"
    bench.mapper.load("m", Table.parse(f"0 64 mirror {words}"))
    bench.shrink("below", "b", 20)
    bench.mapper.resume("m")
    bench.settle()
    assert bench.status() == "2 a /dev/mapper/below 1/4 1 AS 1 core"
    assert bench.disks["b"].content == b"." * (16 << 9) + bytes(48 << 9)


def test_a_target_that_raises_ends_the_bio_with_an_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> bool:
        raise RuntimeError("a fault of the target")

    device = bench.make("0 64 linear o 0")
    with monkeypatch.context() as patch:
        patch.setattr(Linear, "map", wrong)
        assert error_of(lambda: device.read(0, 1)) == errno.EIO
    monkeypatch.setattr(Linear, "wants_end_io", True)
    monkeypatch.setattr(Linear, "end_io", wrong)
    assert error_of(lambda: device.read(0, 1)) == errno.EIO
    assert [str(error) for error in bench.raised] == ["a fault of the target"] * 2
    bench.raised.clear()
    bench.mapper.suspend("m")  # which waits for what is in flight
