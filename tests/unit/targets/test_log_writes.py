"""log-writes on simulated disks: what is logged, in which order, and when logging ends."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator

import pytest

from dmcopy.errors import DeviceError
from dmcopy.io import IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.mapper.mapped import MappedDevice
from dmcopy.ondisk.write_log import END, LogEntry, LogFlag, Super, parse_entries
from dmcopy.table import Table

from .conftest import Engine

TEXT = "0 64 log-writes a log"
WRITE, FLUSH, FUA = LogFlag(0), LogEntry(0, 0, LogFlag.FLUSH), LogFlag.FUA


class LogEngine(Engine):
    """A userspace engine with a device d on disk a, logged on disk log."""

    def __init__(self, *, block_size: int = 512, log_sectors: int = 512, seed: int = 7) -> None:
        disk = SimulatedDisk(64, "a", logical_block_size=block_size)
        super().__init__(disk, SimulatedDisk(log_sectors, "log"), seed=seed)

    def logged(self, text: str = TEXT) -> MappedDevice:
        self.make("d", text)
        return self.mapper.open("d")

    @property
    def says(self) -> str:
        return str(self.mapper.status("d")[0]).removeprefix("0 64 log-writes ")

    @property
    def image(self) -> bytes:
        return bytes(self.disks["log"].content)

    def entries(self) -> list[LogEntry]:
        return [entry for entry, _ in parse_entries(self.image)]

    def ended(self) -> list[LogEntry]:
        """Remove the device; return the log without its end."""
        self.mapper.remove("d")
        *entries, end = self.entries()
        assert end == LogEntry.mark(END, 512)
        return entries


@pytest.fixture
def engine() -> Iterator[LogEngine]:
    with LogEngine() as made:
        yield made


def settle(engine: LogEngine, status: str) -> None:
    engine.reactor.run_until(lambda: engine.says == status, 10, f"{status}, not {engine.says}")


def test_a_log_from_start_to_end(engine: LogEngine) -> None:
    device = engine.logged()
    assert engine.says == "0 0"
    device.write(0, b"a" * 4096)
    assert engine.says == "0 0"
    device.flush()
    settle(engine, "2 10")
    engine.mapper.message("d", "mark", "hello")
    device.write(16, b"b" * 512, fua=True)
    device.flush()
    settle(engine, "5 14")
    engine.mapper.remove("d")
    expected = Super(6, 512).build()
    expected += LogEntry(0, 8, WRITE).build(512) + b"a" * 4096
    expected += FLUSH.build(512)
    expected += LogEntry.mark(b"hello", 512).build(512)
    expected += LogEntry(16, 1, FUA).build(512) + b"b" * 512
    expected += FLUSH.build(512)
    expected += LogEntry.mark(END, 512).build(512)
    assert engine.image[: len(expected)] == expected
    assert not any(engine.image[len(expected) :])
    assert engine.disks["a"].read(0, 8) == b"a" * 4096


def test_the_header_is_written_with_fua_writes_and_marks_only(engine: LogEngine) -> None:
    device = engine.logged()
    device.write(0, b"a" * 512)
    device.flush()
    settle(engine, "2 3")
    assert not any(engine.image[:512])
    device.write(0, b"b" * 512, fua=True)
    settle(engine, "3 5")
    engine.reactor.run_until(lambda: any(engine.image[:512]), 1)
    assert Super.parse(engine.image) == (3, 512)
    device.flush()
    assert Super.parse(engine.image) == (3, 512)


def test_writes_wait_for_a_flush_that_began_after_them(engine: LogEngine) -> None:
    device = engine.logged()
    memory, done = Memory(1), list[Io]()

    def send(op: Op, sector: int = 0, count: int = 0, *, fua: bool = False) -> None:
        extents = [(0, count << 9)] if op == Op.WRITE else []
        region = IoRegion(device, sector, count)
        engine.reactor.submit(Io(op, region, memory, extents, done.append, fua=fua))

    device.write(0, bytes(512))
    send(Op.FLUSH)
    send(Op.WRITE, 8, 1)  # in flight together with the flush: it is not covered
    send(Op.WRITE, 24, 1, fua=True)
    engine.reactor.run_until(lambda: len(done) == 3, 1)
    device.discard(32, 4)
    device.write(40, bytes(512))
    device.flush()
    entries = engine.ended()
    first = entries.index(FLUSH)
    assert LogEntry(0, 1, WRITE) in entries[:first]
    assert LogEntry(24, 1, FUA) in entries
    assert LogEntry(8, 1, WRITE) not in entries[:first]
    later = [LogEntry(8, 1, WRITE), LogEntry(32, 4, LogFlag.DISCARD), LogEntry(40, 1, WRITE), FLUSH]
    assert [one for one in entries[first + 1 :] if one.sector != 24] == later


def test_what_was_not_flushed_is_logged_at_the_end(engine: LogEngine) -> None:
    device = engine.logged()
    device.write(8, b"x" * 1024)
    assert engine.ended() == [LogEntry(8, 2, WRITE)]
    assert engine.disks["log"].read(2, 2) == b"x" * 1024


def test_the_data_is_that_of_the_moment(engine: LogEngine) -> None:
    device = engine.logged()
    device.write(0, b"1" * 512)
    device.write(0, b"2" * 512)
    assert engine.ended() == [LogEntry(0, 1, WRITE)] * 2
    assert (engine.disks["log"].read(2, 1), engine.disks["log"].read(4, 1)) == (
        b"1" * 512,
        b"2" * 512,
    )


@pytest.mark.parametrize("block_size", [512, 1024, 4096])
def test_the_unit_is_the_block_of_the_device(block_size: int) -> None:
    engine = LogEngine(block_size=block_size)
    with engine.reactor, engine.mapper:
        device = engine.logged()
        sectors = block_size // 512
        assert engine.says == f"0 {sectors - 1}"
        device.write(8, b"x" * 8192)
        device.discard(16, 8)
        engine.mapper.remove("d")
        entries = [LogEntry(8 // sectors, 16 // sectors, WRITE)]
        entries += [
            LogEntry(16 // sectors, 8 // sectors, LogFlag.DISCARD),
            LogEntry.mark(END, block_size),
        ]
        assert engine.entries() == entries
        assert Super.parse(engine.image) == (3, block_size)


def test_a_line_in_the_middle_keeps_its_sectors(engine: LogEngine) -> None:
    device = engine.logged("0 8 zero\n8 40 log-writes a log")
    device.write(12, b"m" * 512)
    assert engine.ended() == [LogEntry(12, 1, WRITE)]
    assert engine.disks["a"].read(12, 1) == b"m" * 512


def test_a_full_log_is_given_up_and_the_data_is_written() -> None:
    engine = LogEngine(log_sectors=12)
    with engine.reactor, engine.mapper:
        device = engine.logged()
        device.write(0, b"a" * 2048, fua=True)
        settle(engine, "1 5")
        device.write(8, b"b" * 3072, fua=True)
        settle(engine, "1 12 logging_disabled")
        device.write(16, b"c" * 512, fua=True)
        assert engine.mapper.status("d")[0].status.trouble
        engine.mapper.remove("d")
        assert engine.entries() == [LogEntry(0, 4, FUA)]
        assert engine.disks["a"].read(8, 6) == b"b" * 3072
        assert engine.disks["a"].read(16, 1) == b"c" * 512


def test_a_log_that_fails_is_given_up_and_the_data_is_written(engine: LogEngine) -> None:
    device = engine.logged()
    device.write(0, b"a" * 512, fua=True)
    settle(engine, "1 2")
    engine.disks["log"].fail(Op.WRITE, 3, 1)
    device.write(1, b"b" * 512, fua=True)
    settle(engine, "2 4 logging_disabled")
    device.write(2, b"c" * 512)
    device.flush()
    engine.mapper.remove("d")
    assert engine.entries() == [LogEntry(0, 1, FUA)]
    assert engine.disks["a"].read(0, 3) == b"a" * 512 + b"b" * 512 + b"c" * 512


def test_a_write_that_fails_is_logged_all_the_same(engine: LogEngine) -> None:
    device = engine.logged()
    engine.disks["a"].fail(Op.WRITE, 4, 1)
    with pytest.raises(DeviceError):
        device.write(4, b"x" * 512)
    assert engine.ended() == [LogEntry(4, 1, WRITE)]


def test_a_discard_is_logged_where_the_device_has_none(engine: LogEngine) -> None:
    engine.disks["a"].fail(Op.DISCARD, 0, 64, error=errno.EOPNOTSUPP)
    engine.logged().discard(8, 8)
    assert engine.ended() == [LogEntry(8, 8, LogFlag.DISCARD)]


def test_reads_are_not_logged(engine: LogEngine) -> None:
    device = engine.logged()
    assert device.read(0, 8) == bytes(4096)
    assert engine.ended() == []


def test_messages(engine: LogEngine) -> None:
    engine.logged()
    engine.mapper.message("d", "MARK", "é" * 300)
    for words, reason in (
        (("mark",), "expect 2 arguments, got 1"),
        (("mark", "a", "b"), "expect 2 arguments, got 3"),
        (("note", "a"), "Unrecognised log writes target message received: note"),
    ):
        with pytest.raises(DeviceError, match=reason):
            engine.mapper.message("d", *words)
    (mark,) = engine.ended()
    assert mark.text == ("é" * 300).encode()[:479]


def test_a_table_that_never_ran_leaves_the_log_alone(engine: LogEngine) -> None:
    assert engine.mapper.refusal(Table.parse(TEXT)) == ""
    engine.mapper.create("d")
    engine.mapper.load("d", Table.parse(TEXT))
    engine.mapper.clear("d")
    engine.mapper.remove("d")
    assert not any(engine.image)


def test_many_in_flight_are_all_logged_before_their_flush() -> None:
    for seed in range(20):
        engine = LogEngine(seed=seed)
        with engine.reactor, engine.mapper:
            device = engine.logged()
            memory, done = Memory(1), list[Io]()
            for sector in range(32):
                region = IoRegion(device, sector, 1)
                fua = sector % 5 == 0
                engine.reactor.submit(
                    Io(Op.WRITE, region, memory, [(0, 512)], done.append, fua=fua)
                )
            engine.reactor.run_until(lambda done=done: len(done) == 32, 1)  # type: ignore[misc]
            device.flush()
            entries = engine.ended()
            assert entries.index(FLUSH) == 32
            order = [io.sector for io in done]
            fua_first = [s for s in order if s % 5 == 0] + [s for s in order if s % 5]
            assert [entry.sector for entry in entries[:32]] == fua_first


@pytest.mark.parametrize("seed", range(5))
def test_a_replay_of_the_log_is_the_disk(seed: int) -> None:
    rng = random.Random(seed)
    engine = LogEngine(seed=seed, log_sectors=4096)
    with engine.reactor, engine.mapper:
        device = engine.logged()
        for _ in range(100):
            count = rng.randint(1, 8)
            sector = rng.randrange(64 - count)
            choice = rng.random()
            if choice < 0.1:
                device.flush()
            elif choice < 0.2:
                device.flush()  # a FUA write overtakes in the log what no flush came for
                device.write(sector, rng.randbytes(count << 9), fua=True)
            elif choice < 0.3:
                device.discard(sector, count)
            else:
                device.write(sector, rng.randbytes(count << 9))
        engine.mapper.remove("d")
        replayed = bytearray(64 << 9)
        for entry, start in parse_entries(engine.image):
            size = entry.nr_sectors << 9
            data = engine.image[start : start + size]
            is_discard = entry.flags & LogFlag.DISCARD
            at = entry.sector << 9
            replayed[at : at + size] = bytes(size) if is_discard else data
        assert replayed == engine.disks["a"].content


def test_the_table(engine: LogEngine) -> None:
    engine.logged()
    assert str(engine.mapper.table("d")) == TEXT
    assert engine.mapper.deps("d") == ("a", "log")
