"""The plain targets, and the way of bios through a mapped device."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.errors import BusyError, DeadlineError, DeviceError, UsageError
from dmcopy.io import IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.kcopyd import Client
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table

from .conftest import Engine


def sectors(rng: random.Random, count: int) -> bytes:
    return rng.randbytes(count << 9)


def test_a_linear_device_is_a_window(engine: Engine) -> None:
    data = sectors(random.Random(1), 16)
    engine.make("d", "0 32 linear a 8")
    device = engine.mapper.open("d")
    device.write(4, data)
    assert engine.disks["a"].read(12, 16) == data
    assert device.read(4, 16) == data
    assert engine.mapper.table("d") == Table.parse("0 32 linear a 8")
    assert str(engine.mapper.status("d")[0]) == "0 32 linear"


def test_requests_are_cut_at_the_lines_of_a_table(engine: Engine) -> None:
    engine.make("d", "0 8 linear a 0\n8 8 zero\n16 8 linear b 4")
    device = engine.mapper.open("d")
    data = sectors(random.Random(2), 24)
    device.write(0, data)
    assert device.read(0, 24) == data[: 8 << 9] + bytes(8 << 9) + data[16 << 9 :]
    assert engine.disks["b"].read(4, 8) == data[16 << 9 :]


def test_stripes_take_turns(engine: Engine) -> None:
    engine.make("d", "0 48 striped 3 4 a 0 b 8 c 16")
    device = engine.mapper.open("d")
    data = sectors(random.Random(3), 48)
    device.write(0, data)
    assert device.read(0, 48) == data
    chunks = [data[start : start + 2048] for start in range(0, len(data), 2048)]
    assert engine.disks["b"].read(8, 16) == b"".join(chunks[1::3])
    device.discard(2, 40)
    assert device.read(0, 48) == data[: 2 << 9] + bytes(40 << 9) + data[42 << 9 :]


def test_stripes_in_the_middle_of_a_table_begin_with_their_line(engine: Engine) -> None:
    engine.make("d", "0 20 zero\n20 32 striped 2 4 a 0 b 8")
    device, data = engine.mapper.open("d"), sectors(random.Random(4), 32)
    device.write(20, data)
    assert device.read(20, 32) == data
    chunks = [data[start : start + 2048] for start in range(0, len(data), 2048)]
    assert engine.disks["a"].read(0, 16) == b"".join(chunks[::2])
    assert engine.disks["b"].read(8, 16) == b"".join(chunks[1::2])
    device.discard(22, 20)
    assert device.read(20, 32) == data[: 2 << 9] + bytes(20 << 9) + data[22 << 9 :]


def test_a_discard_of_stripes_takes_nothing_else(engine: Engine) -> None:
    before = {}
    for seed, name in enumerate("abc"):
        engine.disks[name].load(sectors(random.Random(seed), engine.disks[name].sectors))
        before[name] = engine.disks[name].read(0, 40)
    engine.make("d", "0 48 striped 3 4 a 0 b 8 c 16")
    engine.mapper.open("d").discard(20, 8)  # the second chunk of c, and the third of a
    changed = {
        (name, sector)
        for name, data in before.items()
        for sector in range(40)
        if engine.disks[name].read(sector, 1) != data[sector << 9 : (sector + 1) << 9]
    }
    assert changed == {("c", 20 + n) for n in range(4)} | {("a", 8 + n) for n in range(4)}


def test_a_flush_goes_to_every_stripe(engine: Engine) -> None:
    engine.make("d", "0 48 striped 3 4 a 0 b 8 c 16")
    engine.mapper.open("d").flush()
    for number, name in enumerate("abc"):
        engine.disks[name].fail(Op.FLUSH, 0, 1, times=1)
        with pytest.raises(DeviceError):
            engine.mapper.open("d").flush()
        letters = "D" * (number + 1) + "A" * (2 - number)
        assert str(engine.mapper.status("d")[0]).endswith(f" 1 {letters}")


def test_a_failing_stripe_is_told(engine: Engine) -> None:
    engine.make("bad", "0 64 error")
    engine.make("d", "0 16 striped 2 4 a 0 /dev/mapper/bad 0")
    with pytest.raises(DeviceError) as caught:
        engine.mapper.open("d").read(4, 4)
    assert caught.value.errno == errno.EIO
    assert str(engine.mapper.status("d")[0]) == "0 16 striped 2 a /dev/mapper/bad 1 AD"
    assert engine.mapper.info("d").events == 1


def test_error_hears_of_no_flush(engine: Engine) -> None:
    engine.make("d", "0 8 linear a 0\n8 8 error")
    device = engine.mapper.open("d")
    device.flush()
    with pytest.raises(DeviceError) as caught:
        device.write(8, bytes(512))
    assert caught.value.errno == errno.EIO
    with pytest.raises(DeviceError) as caught:
        device.discard(8, 1)
    assert caught.value.errno == errno.EIO


def test_stacks_carry_kcopyd(engine: Engine) -> None:
    engine.make("low", "0 64 linear a 0")
    engine.make("high", "0 32 linear /dev/mapper/low 16")
    high = engine.mapper.open("high")
    data = sectors(random.Random(4), 32)
    engine.disks["b"].load(data + bytes(engine.disks["b"].sectors * 512 - len(data)))
    with Client(16, reactor=engine.mapper.reactor) as client:
        source = IoRegion(engine.disks["b"], 0, 32)
        assert client.copy(source, [IoRegion(high, 0, 32)]).wait(10).ok
        assert engine.disks["a"].read(16, 32) == data
        assert client.zero([IoRegion(high, 0, 32)]).wait(10).ok
    assert engine.disks["a"].read(16, 32) == bytes(32 << 9)
    with pytest.raises(BusyError, match="the mapped device high"):
        engine.mapper.remove("low")


def test_a_suspended_device_keeps_its_bios(engine: Engine) -> None:
    engine.make("d", "0 32 linear a 0")
    device, reactor = engine.mapper.open("d"), engine.mapper.reactor
    engine.mapper.suspend("d")
    memory, done = Memory(1), list[Io]()
    memory.fill([(0, 512)], b"x" * 512)
    reactor.submit(Io(Op.WRITE, IoRegion(device, 0, 1), memory, [(0, 512)], done.append))
    with pytest.raises(DeadlineError):
        reactor.run_until(lambda: done, 0.1)
    engine.mapper.load("d", Table.parse("0 32 linear b 0"))
    engine.mapper.resume("d")
    reactor.run_until(lambda: done, 0.1)
    assert engine.disks["b"].read(0, 1) == b"x" * 512
    assert engine.disks["a"].read(0, 1) == bytes(512)


def test_a_write_that_was_given_up_is_done_later_with_its_own_data(engine: Engine) -> None:
    """Nothing waits for it, and something else has the next memory that is asked for."""
    engine.make("d", "0 32 linear a 0")
    device, reactor = engine.mapper.open("d"), engine.mapper.reactor
    device.timeout = 0.1
    engine.mapper.suspend("d")
    with pytest.raises(DeadlineError, match=r"waited 0\.1 s for WRITE"):
        device.write(0, b"x" * 512)
    with pytest.raises(DeadlineError, match="for READ"):
        device.read(8, 8)
    other = Memory(1)
    other.fill([(0, 512)], b"?" * 512)
    raised: list[BaseException] = []
    reactor.on_exception = raised.append
    engine.mapper.resume("d")
    with pytest.raises(DeadlineError):
        reactor.run_until(lambda: False, 0.1)
    assert engine.disks["a"].read(0, 1) == b"x" * 512
    assert not device.in_flight
    assert not raised


def test_plain_files_are_claimed_once(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(64 << 9))
    with UserMapper() as mapper:
        mapper.create("d", Table.parse(f"0 32 linear {image} 0\n32 32 linear {image} 32"))
        mapper.create("e", Table.parse(f"0 64 linear {image} 0"))
        mapper.open("d").write(40, b"y" * 512)
        assert mapper.open("e").read(40, 1) == b"y" * 512
        with pytest.raises(BusyError):
            BlockDevice.open(image, write=True)
    BlockDevice.open(image, write=True).close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 512 linear a 0", "too small for target"),
        ("0 8 linear a 256", "too small for target"),
        ("0 512 dust a 0 512", "too small for target"),
        ("0 512 flakey a 0 1 0", "too small for target"),
        ("0 512 log-writes a b", "too small for target"),
        ("0 768 striped 2 8 a 0 b 0", "too small for target"),
        ("0 512 snapshot-origin a", "too small for target"),
        ("0 512 snapshot a b P 8", "too small for target"),
        ("0 8 crypt aes - 0 a 0", "no target 'crypt'"),
    ],
)
def test_a_refused_table_leaves_no_device(engine: Engine, text: str, reason: str) -> None:
    with pytest.raises((DeviceError, UsageError), match=reason):
        engine.make("d", text)
    assert engine.mapper.ls() == []


def test_a_device_without_a_table_fails_what_waits_when_it_goes(engine: Engine) -> None:
    engine.mapper.create("d")
    with pytest.raises(DeviceError, match="no table"):
        engine.mapper.resume("d")
    info = engine.mapper.info("d")
    assert info.suspended
    assert not info.live


def test_names_and_uuids_are_unique(engine: Engine) -> None:
    engine.mapper.create("d", uuid="U")
    for name, uuid in (("d", ""), ("e", "U")):
        with pytest.raises(DeviceError, match="already"):
            engine.mapper.create(name, uuid=uuid)
    engine.mapper.create("other")
    with pytest.raises(DeviceError, match="busy; d has the UUID U already") as caught:
        engine.mapper.set_uuid("other", "U")
    assert caught.value.errno == errno.EBUSY
    engine.mapper.rename("d", "e")
    assert [one.name for one in engine.mapper.ls()] == ["e", "other"]
    assert engine.mapper.info("e").events == 0  # without a table there are no events


def test_a_rename_and_a_uuid_are_events(engine: Engine) -> None:
    engine.make("d", "0 8 zero")
    engine.mapper.rename("d", "e")
    engine.mapper.set_uuid("e", "U")
    assert engine.mapper.info("e").events == 2


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE, Op.DISCARD])
def test_what_error_fails_is_no_fault_of_the_target(engine: Engine, op: Op) -> None:
    told: list[Exception] = []
    engine.mapper.reactor.on_exception = told.append
    engine.make("bad", "0 64 error")
    ended: list[Io] = []
    region, extents = IoRegion(engine.mapper.open("bad"), 8, 1), [(0, 512)] * (op <= Op.WRITE)
    engine.mapper.reactor.submit(Io(op, region, Memory(1), extents, ended.append))
    engine.mapper.reactor.run_until(lambda: ended, 10)
    assert (ended[0].error, told) == (errno.EIO, [])


def test_error_with_a_device_takes_its_blocks_and_fits_it(engine: Engine) -> None:
    engine.disks["a"].logical_block_size = 4096
    engine.make("plain", "0 64 error")
    engine.make("bad", "0 64 error a 192")
    assert engine.mapper.open("plain").logical_block_size == 512
    assert engine.mapper.open("bad").logical_block_size == 4096
    assert engine.mapper.deps("bad") == ("a",)
    with pytest.raises(DeviceError, match="a too small for target: start=200, len=64"):
        engine.make("more", "0 64 error a 200")


def test_what_zero_reads_is_zeroes_whatever_the_memory_had(engine: Engine) -> None:
    engine.make("d", "0 64 zero")
    memory, ended = Memory(1), list[Io]()
    memory.view[:] = b"x" * 4096
    region = IoRegion(engine.mapper.open("d"), 8, 3)
    engine.mapper.reactor.submit(Io(Op.READ, region, memory, [(512, 1536)], ended.append))
    engine.mapper.reactor.run_until(lambda: ended, 10)
    assert ended[0].error == 0
    assert bytes(memory.view) == b"x" * 512 + bytes(1536) + b"x" * 2048
