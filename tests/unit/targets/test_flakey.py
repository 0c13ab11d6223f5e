"""flakey, on a virtual clock: when it is bad, and what each feature then does."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator

import pytest

from dmcopy.errors import DeadlineError, DeviceError, UsageError
from dmcopy.io import IoRegion, whole
from dmcopy.io.request import Io, Memory, Op
from dmcopy.io.simulated import SimulatedDisk

from .conftest import Engine

OLD, NEW = b"o" * 1024, b"n" * 1024


class FlakeyEngine(Engine):
    """A userspace engine with a device d on the simulated disk a, which holds OLD at sector 8."""

    def __init__(self) -> None:
        self.disk = SimulatedDisk(256, "a")
        self.disk.write(8, OLD)
        super().__init__(self.disk)

    def flakey(self, features: str, cycle: str = "0 10") -> None:
        self.make("d", f"0 64 flakey a 8 {cycle} {features}")

    def sleep_until(self, second: float) -> None:
        seconds = second - self.reactor.time()
        with pytest.raises(DeadlineError):
            self.reactor.run_until(lambda: False, seconds)

    def outcome(self, op: Op) -> str:
        """Do an operation on sector 0; say how it ended."""
        device = self.mapper.open("d")
        try:
            if op == Op.WRITE:
                device.write(0, NEW)
            elif op == Op.FLUSH:
                device.flush()
            elif op == Op.DISCARD:
                device.discard(0, 2)
            else:
                return device.read(0, 2)[:1].decode()
        except DeviceError as error:
            return errno.errorcode[error.errno]
        return self.disk.read(8, 1)[:1].decode()


@pytest.fixture
def engine() -> Iterator[FlakeyEngine]:
    with FlakeyEngine() as made:
        yield made


@pytest.mark.parametrize(
    ("features", "read", "write", "flush", "discard"),
    [
        ("", "EIO", "EIO", "EIO", "EIO"),
        ("0", "EIO", "EIO", "EIO", "EIO"),
        ("2 error_reads error_writes", "EIO", "EIO", "EIO", "EIO"),
        ("1 error_reads", "EIO", "n", "n", "\0"),
        ("1 drop_writes", "o", "o", "o", "o"),
        ("1 DROP_Writes", "o", "o", "o", "o"),
        ("1 error_writes", "o", "EIO", "EIO", "EIO"),
        ("2 error_reads drop_writes", "EIO", "o", "o", "o"),
        ("5 corrupt_bio_byte 1 r 90 0", "Z", "n", "n", "\0"),
        ("5 corrupt_bio_byte 1 w 90 0", "o", "Z", "Z", "\0"),
        ("6 drop_writes corrupt_bio_byte 1 r 90 0", "Z", "o", "o", "o"),
        ("2 random_read_corrupt 0", "EIO", "EIO", "EIO", "EIO"),
    ],
)
def test_the_bad_time(
    engine: FlakeyEngine, features: str, read: str, write: str, flush: str, discard: str
) -> None:
    engine.flakey(features)
    found = [engine.outcome(op) for op in (Op.READ, Op.WRITE, Op.FLUSH, Op.DISCARD)]
    assert found == [read, write, flush, discard]
    assert str(engine.mapper.status("d")[0]) == "0 64 flakey"


def test_the_cycle_counts_whole_seconds_from_the_load_on(engine: FlakeyEngine) -> None:
    engine.sleep_until(0.7)
    engine.flakey("1 error_writes", "2 3")
    outcomes = []
    for second in range(12):
        engine.sleep_until(second + 0.8)
        early = engine.outcome(Op.WRITE)
        engine.sleep_until(second + 1.6)
        assert engine.outcome(Op.WRITE) == early
        outcomes.append("-" if early == "EIO" else "+")
    assert "".join(outcomes) == "++---++---++"


@pytest.mark.parametrize("features", ["0", "1 drop_writes", "5 corrupt_bio_byte 1 w 90 0"])
def test_always_up(engine: FlakeyEngine, features: str) -> None:
    engine.flakey(features, "5 0")
    engine.sleep_until(7)
    assert [engine.outcome(op) for op in (Op.READ, Op.WRITE)] == ["o", "n"]


def test_a_write_is_corrupted_in_a_copy(engine: FlakeyEngine) -> None:
    engine.flakey("5 corrupt_bio_byte 700 w 90 0")
    memory, done = Memory(1), list[Io]()
    memory.view[:1024] = NEW
    extents = [(512, 512), (0, 512)]
    region = IoRegion(engine.mapper.open("d"), 0, 2)
    engine.reactor.submit(Io(Op.WRITE, region, memory, extents, done.append))
    engine.reactor.run_until(lambda: done, 1)
    assert memory.view[:1024] == NEW
    assert engine.disk.read(8, 2) == NEW[:699] + b"Z" + NEW[700:]


def test_a_read_is_corrupted_across_extents(engine: FlakeyEngine) -> None:
    engine.flakey("5 corrupt_bio_byte 513 r 90 0")
    memory = Memory(1)
    region = IoRegion(engine.mapper.open("d"), 0, 2)
    whole.perform(engine.reactor, Io(Op.READ, region, memory, [(2048, 512), (0, 512)]))
    assert bytes(memory.view[:512]) == b"Z" + OLD[:511]
    assert bytes(memory.view[2048:2560]) == OLD[:512]
    assert engine.disk.read(8, 2) == OLD


def test_a_bio_may_be_too_short_to_corrupt(engine: FlakeyEngine) -> None:
    engine.flakey("5 corrupt_bio_byte 1025 w 90 0")
    assert engine.outcome(Op.WRITE) == "n"
    assert engine.disk.read(8, 2) == NEW


def test_only_bios_with_all_flags_are_corrupted(engine: FlakeyEngine) -> None:
    engine.flakey(f"5 corrupt_bio_byte 1 w 90 {1 << 17}")
    device = engine.mapper.open("d")
    device.write(0, NEW)
    assert engine.disk.read(8, 2) == NEW
    device.write(0, NEW, fua=True)
    assert engine.disk.read(8, 2) == b"Z" + NEW[1:]


@pytest.mark.parametrize(("probability", "low", "high"), [(10**9, 180, 200), (5 * 10**8, 60, 140)])
@pytest.mark.parametrize("op", [Op.READ, Op.WRITE])
def test_random_bytes(engine: FlakeyEngine, op: Op, probability: int, low: int, high: int) -> None:
    engine.flakey(f"2 random_{op.name.lower()}_corrupt {probability}")
    device = engine.mapper.open("d")
    changed = []
    for _ in range(200):
        if op == Op.WRITE:
            device.write(0, OLD)
        data = device.read(0, 2)
        changed += [place for place in range(1024) if data[place] != OLD[place]]
    assert low <= len(changed) <= high
    assert len(set(changed)) > low // 2


def test_a_run_can_be_repeated() -> None:
    found = []
    for _ in range(2):
        engine = FlakeyEngine()
        with engine.reactor, engine.mapper:
            engine.flakey("2 random_read_corrupt 300000000")
            found.append([engine.mapper.open("d").read(0, 2) for _ in range(20)])
    assert found[0] == found[1]


def test_what_fails_below_is_not_touched(engine: FlakeyEngine) -> None:
    engine.flakey("5 corrupt_bio_byte 1 r 90 0")
    fault = engine.disk.fail(Op.READ, 8, 1)
    assert engine.outcome(Op.READ) == "EIO"
    engine.disk.faults.remove(fault)
    assert engine.outcome(Op.READ) == "Z"


@pytest.mark.parametrize(
    ("features", "echo"),
    [
        ("", "0"),
        ("1 Error_Reads", "1 error_reads"),
        ("2 error_writes error_reads", "0"),
        ("6 corrupt_bio_byte 3 R 1 0 drop_writes", "6 drop_writes corrupt_bio_byte 3 r 1 0"),
        ("3 random_write_corrupt 0 error_writes", "1 error_writes"),
    ],
)
def test_the_table_is_echoed_as_by_the_kernel(
    engine: FlakeyEngine, features: str, echo: str
) -> None:
    engine.flakey(features)
    assert str(engine.mapper.table("d")) == f"0 64 flakey a 8 0 10 {echo}"


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        ("4 random_read_corrupt 1 random_read_corrupt 2", "Feature random_read_corrupt duplicated"),
        (
            "10 corrupt_bio_byte 1 r 1 0 corrupt_bio_byte 2 r 1 0",
            "Feature corrupt_bio_byte duplicated",
        ),
        (
            "3 error_reads random_read_corrupt 1",
            "error_reads is incompatible with random_read_corrupt or corrupt_bio_byte with the "
            "READ flag set",
        ),
        (
            "6 error_reads corrupt_bio_byte 1 r 1 0",
            "error_reads is incompatible with random_read_corrupt or corrupt_bio_byte with the "
            "READ flag set",
        ),
        (
            "3 drop_writes random_write_corrupt 1",
            "drop_writes is incompatible with random_write_corrupt or corrupt_bio_byte with the "
            "WRITE flag set",
        ),
        (
            "3 error_writes random_write_corrupt 1",
            "error_writes is incompatible with random_write_corrupt or corrupt_bio_byte with the "
            "WRITE flag set",
        ),
        ("1 nonsense", "unknown"),
        ("2 drop_writes error_writes", "excludes"),
        ("6 drop_writes corrupt_bio_byte 1 w 1 0", "excludes"),
    ],
)
def test_refusals(engine: FlakeyEngine, features: str, reason: str) -> None:
    with pytest.raises((DeviceError, UsageError), match=reason):
        engine.flakey(features)
    assert engine.mapper.ls() == []


def test_the_data_is_good_while_up(engine: FlakeyEngine) -> None:
    engine.flakey("4 random_read_corrupt 1000000000 random_write_corrupt 1000000000", "5 5")
    data = random.Random(1).randbytes(32 << 9)
    device = engine.mapper.open("d")
    device.write(0, data)
    assert device.read(0, 32) == data == engine.disk.read(8, 32)
