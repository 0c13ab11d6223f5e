"""dust: bad blocks, and the messages that make them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from dmcopy.errors import DeviceError
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.mapper.mapped import MappedDevice

from .conftest import Engine

OLD, NEW = b"o" * 512, b"n" * 512


class DustEngine(Engine):
    """A device d of 64 sectors over sector 8 and on of the disk a, with blocks of 1024 bytes."""

    def __init__(self) -> None:
        self.disk = SimulatedDisk(256, "a")
        self.disk.load(OLD * 256)
        super().__init__(self.disk)

    def dust(self, start: int = 0) -> MappedDevice:
        zero = f"0 {start} zero\n" if start else ""
        self.make("d", f"{zero}{start} 64 dust a 8 1024")
        return self.mapper.open("d")

    def say(self, text: str, sector: int = 0) -> str:
        return self.mapper.message("d", *text.split(), sector=sector)


@pytest.fixture
def engine() -> Iterator[DustEngine]:
    with DustEngine() as made:
        yield made


def fails(act: Callable[[], object]) -> bool:
    try:
        act()
    except DeviceError as error:
        return error.errno == errno.EIO
    return False


@pytest.mark.parametrize("start", [0, 12])
def test_a_bad_block_fails_reads_until_it_is_written(engine: DustEngine, start: int) -> None:
    device = engine.dust(start)
    engine.say("addbadblock 5", start)  # sectors 10 and 11 of the disk, 2 and 3 of the line
    assert device.read(start, 8) == OLD * 8
    engine.say("enable", start)
    bad = [fails(partial(device.read, start + at, 1)) for at in range(6)]
    assert bad == [False, False, True, True, False, False]
    assert fails(lambda: device.read(start, 8))
    device.flush()
    device.write(start + 3, NEW)
    assert device.read(start, 4) == OLD * 3 + NEW
    assert engine.say("countbadblocks", start) == "countbadblocks: 0 badblock(s) found"


def test_writes_may_fail_first(engine: DustEngine) -> None:
    device = engine.dust()
    engine.say("addbadblock 4 2")
    engine.say("enable")
    assert [fails(lambda: device.write(0, NEW)) for _ in range(4)] == [True, True, False, False]
    assert device.read(0, 1) == NEW


def test_in_bypass_nothing_fails_and_the_list_stays(engine: DustEngine) -> None:
    device = engine.dust()
    engine.say("ADDBADBLOCK 4")
    engine.say("enable")
    engine.say("disable")
    device.write(0, NEW)
    assert device.read(0, 1) == NEW
    assert engine.say("queryblock 4") == "dust_query_block: block 4 found in badblocklist"


def test_the_list(engine: DustEngine) -> None:
    engine.dust()
    assert engine.say("listbadblocks") == "No blocks in badblocklist"
    assert engine.say("clearbadblocks") == "dust_clear_badblocks: no badblocks found"
    for block in (9, 3, 128):
        assert engine.say(f"addbadblock {block} 255") == ""
    assert engine.say("listbadblocks") == "3\n9\n128"
    assert engine.say("removebadblock 9") == ""
    assert engine.say("queryblock 9") == "dust_query_block: block 9 not found in badblocklist"
    assert engine.say("countbadblocks") == "countbadblocks: 2 badblock(s) found"
    assert engine.say("clearbadblocks") == "dust_clear_badblocks: badblocks cleared"
    assert engine.say("listbadblocks") == "No blocks in badblocklist"


def test_the_status_and_the_table(engine: DustEngine) -> None:
    engine.dust()
    assert str(engine.mapper.status("d")[0]) == "0 64 dust a bypass verbose"
    engine.say("quiet")
    engine.say("enable")
    assert str(engine.mapper.status("d")[0]) == "0 64 dust a fail_read_on_bad_block quiet"
    engine.say("quiet")
    assert str(engine.mapper.status("d")[0]) == "0 64 dust a fail_read_on_bad_block verbose"
    assert str(engine.mapper.table("d")) == "0 64 dust a 8 1024"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "the message is empty"),
        ("addbadblock", "addbadblock requires an additional argument"),
        ("addbadblock 1", "block 1 already in badblocklist"),
        ("addbadblock 129", "selected block value out of range"),
        ("addbadblock x", "no number"),
        ("addbadblock " + "9" * 5000, "no number"),
        ("addbadblock 2 256", "selected write fail count out of range"),
        ("removebadblock 2", "block 2 not found in badblocklist"),
        ("removebadblock 1 2", "unrecognized message 'removebadblock' received"),
        ("nonsense", "unrecognized message 'nonsense' received"),
        ("a b c d", "invalid number of arguments '4'"),
    ],
)
def test_refusals(engine: DustEngine, message: str, reason: str) -> None:
    engine.dust()
    engine.say("addbadblock 1")
    with pytest.raises(DeviceError, match=reason) as caught:
        engine.say(message)
    assert caught.value.errno == errno.EINVAL
    assert engine.say("listbadblocks") == "1"
