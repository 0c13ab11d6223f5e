"""I/O that is waited for."""

from __future__ import annotations

import errno

import pytest

from dmcopy.errors import DeadlineError, DeviceError, UsageError
from dmcopy.io import Io, IoRegion, Op, Reactor, whole
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.io.stacked import StackedDevice


@pytest.fixture
def reactor() -> Reactor:
    return Reactor(SimulatedBackend(1), stacked=True)


@pytest.fixture
def disk() -> SimulatedDisk:
    disk = SimulatedDisk(64, "disk")
    disk.load(b"x" * (64 << 9))
    return disk


def test_what_is_written_is_read(reactor: Reactor, disk: SimulatedDisk) -> None:
    data = bytes(range(256)) * 4 * 9  # more than a page
    whole.write(reactor, disk, 3, data)
    assert whole.read(reactor, disk, 3, 18) == data
    assert whole.read(reactor, disk, 2, 1) == whole.read(reactor, disk, 21, 1) == b"x" * 512
    whole.zero(reactor, disk, 4, 2)
    assert whole.read(reactor, disk, 3, 4) == data[:512] + bytes(1024) + data[1536:2048]
    whole.discard(reactor, disk, 0, 1)
    assert whole.read(reactor, disk, 0, 2) == bytes(512) + b"x" * 512
    assert whole.read(reactor, disk, 64, 0) == b""


def test_only_what_was_flushed_or_has_fua_is_durable(reactor: Reactor, disk: SimulatedDisk) -> None:
    whole.write(reactor, disk, 0, b"a" * 512)
    assert disk._durable[:512] == b"x" * 512
    whole.flush(reactor, disk)
    assert disk._durable[:512] == b"a" * 512
    whole.write(reactor, disk, 0, b"b" * 512, fua=True)
    assert [write.durable for write in disk._cache] == [True]


def test_what_fails_says_what_and_where(reactor: Reactor, disk: SimulatedDisk) -> None:
    for op in (Op.READ, Op.WRITE, Op.FLUSH, Op.DISCARD, Op.WRITE_ZEROES):
        disk.fail(op, 0, 64, error=errno.EILSEQ)
    with pytest.raises(DeviceError, match=r"disk.*read 2 sectors at 8") as raised:
        whole.read(reactor, disk, 8, 2)
    assert raised.value.errno == errno.EILSEQ
    with pytest.raises(DeviceError, match="write 1 sectors at 8"):
        whole.write(reactor, disk, 8, bytes(512))
    with pytest.raises(DeviceError, match="flush it"):
        whole.flush(reactor, disk)
    with pytest.raises(DeviceError, match="write zeroes 3 sectors at 1"):
        whole.zero(reactor, disk, 1, 3)


def test_what_cannot_be_is_refused_before(reactor: Reactor, disk: SimulatedDisk) -> None:
    with pytest.raises(UsageError, match="513 bytes are not a whole number of sectors"):
        whole.write(reactor, disk, 0, bytes(513))
    with pytest.raises(UsageError, match="past the end"):
        whole.read(reactor, disk, 63, 2)
    disk.read_only = True
    whole.read(reactor, disk, 0, 1)
    whole.flush(reactor, disk)
    for change in (whole.zero, whole.discard):
        with pytest.raises(UsageError, match="read-only"):
            change(reactor, disk, 0, 1)
    assert not disk.writes


class Silent(StackedDevice, SimulatedDisk):
    """A device that answers nothing."""

    def submit(self, request: Io) -> None:
        """Forget it."""


def test_what_does_not_answer_has_a_deadline(reactor: Reactor) -> None:
    with pytest.raises(DeadlineError, match="waited 5 s for READ of silent sectors 1"):
        whole.read(reactor, Silent(8, "silent"), 1, 2, timeout=5)
    assert reactor.time() == 5


def test_a_stack_lets_nothing_past_the_end_of_a_device(
    reactor: Reactor, disk: SimulatedDisk
) -> None:
    """A file would grow by it; and the device is not asked."""
    errors: list[int] = []
    for device in (disk, Silent(64, "silent")):
        for place in ((60, 5), (65, 0)):
            request = Io(Op.WRITE_ZEROES, IoRegion(device, *place))
            request.notify = lambda request: errors.append(request.error)
            reactor.submit(request)
    assert not errors, "never inside of submit"
    reactor.step()
    assert errors == [errno.EIO] * 4
    assert disk.writes == 0
    whole.zero(reactor, disk, 60, 4)
    assert disk.writes == 1
