"""Requests of a ublk device, without a kernel: carried out on disks in memory."""

from __future__ import annotations

import errno
import itertools
import random
from typing import Any

import pytest

from dmcopy.export.ublk.devices import UblkDevices
from dmcopy.export.ublk.requests import DEPTH, MAX_BYTES
from dmcopy.io import Io, Op, Reactor
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.io.stacked import StackedDevice
from tests.unit.export.lasting import SECTORS
from tests.unit.export.ublk.driver import (
    DISCARD,
    FLUSH,
    FUA,
    READ,
    WRITE,
    ZEROES,
    Driver,
    result,
    until,
)


@pytest.fixture(autouse=True)
def served(devices: UblkDevices, disk: SimulatedDisk) -> str:
    return devices.add("disk", disk)


def test_what_is_written_is_read(reactor: Reactor, driver: Driver, disk: SimulatedDisk) -> None:
    data = random.Random(1).randbytes(8192)
    assert result(reactor, driver, driver.ask(WRITE, 100, 16, data)) == (8192, b"")
    assert result(reactor, driver, driver.ask(READ, 100, 16)) == (8192, data)
    assert disk.read(99, 18)[512:-512] == data


def test_many_requests_in_any_order(reactor: Reactor, driver: Driver, disk: SimulatedDisk) -> None:
    """All tags at a time, again and again; each range is one request's until it ends."""
    rng = random.Random(5)
    model = bytearray(disk.content)
    runs = [range(start, start + 64) for start in range(0, SECTORS, 64)]
    assert len(runs) == DEPTH
    device = driver.devices[0]
    for _ in range(5):
        asked = {}
        for run in runs:
            start = rng.randrange(run.start, run.stop)
            count = rng.randrange(1, run.stop - start + 1)
            data = rng.randbytes(count << 9)
            op = rng.choice((READ, WRITE, WRITE | FUA, DISCARD, ZEROES))
            at = slice(start << 9, (start + count) << 9)
            if op in (DISCARD, ZEROES):
                model[at] = bytes(count << 9)
            elif op != READ:
                model[at] = data
            asked[driver.ask(op, start, count, data)] = (op, bytes(model[at]))
        assert len(asked) == DEPTH
        until(reactor, lambda: len(device.results) == DEPTH)
        for tag, (op, data) in asked.items():
            length, found = device.results.pop(tag)
            assert length == (len(data) if op & 0xFF <= WRITE else 0)
            assert found == (data if op == READ else b"")
    assert disk.content == model


@pytest.mark.parametrize("way", ["fua", "flush"])
def test_what_is_durable_stays(
    reactor: Reactor, driver: Driver, disk: SimulatedDisk, way: str
) -> None:
    data = b"\xee" * 512
    tag = driver.ask(WRITE | FUA * (way == "fua"), 8, 1, data)
    assert result(reactor, driver, tag)[0] == 512
    if way == "flush":
        assert result(reactor, driver, driver.ask(FLUSH)) == (0, b"")
    disk.crash(random.Random(2))
    assert disk.read(8, 1) == data


@pytest.mark.parametrize(
    ("op", "ask"),
    [
        (Op.READ, (READ, 8, 8)),
        (Op.WRITE, (WRITE, 8, 8, bytes(4096))),
        (Op.FLUSH, (FLUSH,)),
        (Op.DISCARD, (DISCARD, 8, 8)),
        (Op.WRITE_ZEROES, (ZEROES, 8, 8)),
    ],
)
def test_an_error_of_the_device_is_the_result(
    reactor: Reactor, driver: Driver, disk: SimulatedDisk, op: Op, ask: tuple[Any, ...]
) -> None:
    disk.fail(op, 8, 8, error=errno.ENOSPC, times=1)
    assert result(reactor, driver, driver.ask(*ask)) == (-errno.ENOSPC, b"")
    assert result(reactor, driver, driver.ask(*ask))[0] >= 0


def test_a_device_without_discards_or_zeroing(
    reactor: Reactor, driver: Driver, disk: SimulatedDisk
) -> None:
    """A discard is a hint; zeroes are written."""
    disk.fail(Op.DISCARD, 0, SECTORS, error=errno.EOPNOTSUPP)
    disk.fail(Op.WRITE_ZEROES, 0, SECTORS, error=errno.EOPNOTSUPP)
    before = bytes(disk.content)
    assert result(reactor, driver, driver.ask(DISCARD, 0, 8)) == (0, b"")
    assert disk.content == before
    assert result(reactor, driver, driver.ask(ZEROES, 8, 1000)) == (0, b"")
    assert disk.content == before[:4096] + bytes(512_000) + before[516_096:]


def test_zeroes_with_fua_are_durable(reactor: Reactor, driver: Driver, disk: SimulatedDisk) -> None:
    disk.fail(Op.FLUSH, 0, 0, times=1)
    assert result(reactor, driver, driver.ask(ZEROES | FUA, 0, 8)) == (-errno.EIO, b"")
    assert result(reactor, driver, driver.ask(ZEROES | FUA, 0, 8)) == (0, b"")


def test_a_device_that_became_read_only_or_short_refuses(
    reactor: Reactor, driver: Driver, disk: SimulatedDisk
) -> None:
    before = bytes(disk.content)
    disk.read_only = True
    for ask in ((WRITE, 0, 1, bytes(512)), (DISCARD, 0, 8), (ZEROES | FUA, 0, 8)):
        assert result(reactor, driver, driver.ask(*ask)) == (-errno.EROFS, b"")
    assert result(reactor, driver, driver.ask(READ, 0, 1))[0] == 512
    disk.sectors = 8
    assert result(reactor, driver, driver.ask(READ, 8, 1)) == (-errno.EIO, b"")
    assert disk.content == before


def test_what_it_does_not_know_it_refuses(reactor: Reactor, driver: Driver) -> None:
    assert result(reactor, driver, driver.ask(13)) == (-errno.EOPNOTSUPP, b"")  # ZONE_APPEND


def test_a_device_that_raises_ends_the_request(
    reactor: Reactor, driver: Driver, devices: UblkDevices
) -> None:
    class Broken(StackedDevice):
        path, sectors, logical_block_size, read_only = "broken", 8, 512, False

        def submit(self, request: Io) -> None:
            raise ValueError(request.sector)

    told: list[Exception] = []
    reactor.on_exception = told.append
    devices.add("broken", Broken())  # type: ignore[arg-type]
    assert result(reactor, driver, driver.ask(READ, 0, 8, number=1), 1) == (-errno.EIO, b"")
    assert len(told) == 1


def test_a_request_is_as_long_as_the_memory_of_a_tag(
    reactor: Reactor, driver: Driver, disk: SimulatedDisk
) -> None:
    device = driver.devices[0]
    assert device.params[5] << 9 == MAX_BYTES
    addresses = sorted(device.idle.values())
    assert {b - a for a, b in itertools.pairwise(addresses)} == {MAX_BYTES}
    tags = [driver.ask(READ, start, MAX_BYTES >> 9) for start in (0, 1024, 2048)]
    for tag, start in zip(tags, (0, 1024, 2048), strict=True):
        assert result(reactor, driver, tag) == (MAX_BYTES, disk.read(start, MAX_BYTES >> 9))
