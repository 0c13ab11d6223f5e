"""One file over /dev/fuse, without a kernel: requests and answers over disks in memory."""

from __future__ import annotations

import errno
import itertools
import os
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from dmcopy.export.fuse.file import DEPTH
from dmcopy.io import Io, Op, Reactor
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.io.stacked import StackedDevice
from tests.unit.export.fuse.kernel import (
    EIO,
    ENOSPC,
    EOPNOTSUPP,
    FSYNC,
    INIT,
    PUNCH,
    ZERO,
    Kernel,
    reactor,
)

SECTORS = 4096
SIZE = SECTORS * 512
GETATTR, SETATTR, OPEN, STATFS, IOCTL, FORGET, LSEEK = 3, 4, 14, 17, 39, 2, 46
INTERRUPT = 36
FATTR_MODE, FATTR_SIZE, FATTR_MTIME, FATTR_FH = 1, 8, 32, 64


@pytest.fixture
def block() -> int:
    return 512


@pytest.fixture
def disk(block: int) -> SimulatedDisk:
    made = SimulatedDisk(SECTORS, logical_block_size=block)
    made.load(random.Random(1).randbytes(SIZE))
    return made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def over(device: object, stack: ExitStack, seed: int = 7) -> Kernel:
    on = stack.enter_context(reactor(seed))
    kernel = Kernel(on, device)
    stack.callback(kernel.close)
    stack.callback(kernel.requests.close)
    return kernel


@pytest.fixture
def kernel(disk: SimulatedDisk, stack: ExitStack) -> Kernel:
    return over(disk, stack)


def setattr_body(which: int, size: int = 0) -> bytes:
    return struct.pack("=I4xQQ64x", which, 0, size)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 512), (4096, 65536), (1, 1), (511, 2), (700, 4000), (SIZE - 100, 100), (SIZE - 3, 4096)],
)
def test_what_is_read_is_what_is_there(
    kernel: Kernel, disk: SimulatedDisk, offset: int, size: int
) -> None:
    assert kernel.answer(kernel.read(offset, size)) == (0, bytes(disk.content[offset:][:size]))


def test_there_is_nothing_to_read_past_the_end(kernel: Kernel) -> None:
    assert kernel.answer(kernel.read(SIZE, 512)) == (0, b"")
    assert kernel.answer(kernel.read(1 << 50, 512)) == (0, b"")


@pytest.mark.parametrize("block", [512, 4096])
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 4096), (8192, 65536), (1, 1), (511, 2), (700, 9000), (SIZE - 9, 9)]
)
def test_a_write_changes_its_bytes_and_no_others(
    kernel: Kernel, disk: SimulatedDisk, offset: int, size: int
) -> None:
    expected = bytearray(disk.content)
    data = random.Random(2).randbytes(size)
    expected[offset : offset + size] = data
    assert kernel.answer(kernel.write(offset, data)) == (0, struct.pack("=II", size, 0))
    assert disk.content == expected


def test_a_write_ends_where_the_device_does(kernel: Kernel, disk: SimulatedDisk) -> None:
    assert kernel.answer(kernel.write(SIZE - 512, b"x" * 4096)) == (0, struct.pack("=II", 512, 0))
    assert kernel.answer(kernel.write(SIZE, b"x" * 512)) == (ENOSPC, b"")
    assert disk.content[-513:] == disk.content[-513:-512] + b"x" * 512
    assert len(disk.content) == SIZE


@pytest.mark.parametrize("seed", range(20))
def test_writes_to_parts_of_one_block_undo_nothing(
    disk: SimulatedDisk, stack: ExitStack, seed: int
) -> None:
    """Disjoint bytes of the same few blocks, all in flight together, completing in any order."""
    kernel = over(disk, stack, seed)
    rng = random.Random(seed)
    model = bytearray(disk.content)
    cuts = sorted({0, 512, 1024, 1536, 2048, *rng.sample(range(2048), 20)})
    pieces = list(itertools.pairwise(cuts))
    rng.shuffle(pieces)
    sent = []
    for start, end in pieces:
        data = rng.randbytes(end - start)
        model[start:end] = data
        sent.append(kernel.write(start, data))
    rng.shuffle(sent)
    for unique in sent:
        assert kernel.answer(unique)[0] == 0
    assert disk.content == model
    assert kernel.requests.under_way == 0


@pytest.mark.parametrize("offset", [512, 700])
def test_a_synchronous_write_outlives_a_power_cut(
    kernel: Kernel, disk: SimulatedDisk, offset: int
) -> None:
    kernel.answer(kernel.write(offset, b"x" * 512, os.O_WRONLY | os.O_DSYNC))
    for seed in range(8):
        twin = disk.twin()
        twin.crash(random.Random(seed))
        assert twin.content[offset : offset + 512] == b"x" * 512


def test_what_was_synced_outlives_a_power_cut(kernel: Kernel, disk: SimulatedDisk) -> None:
    kernel.answer(kernel.write(0, b"x" * 512))
    assert kernel.ask(FSYNC, bytes(16)) == (0, b"")
    disk.crash(random.Random(0))
    assert disk.content[:512] == b"x" * 512


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE, Op.FLUSH])
def test_an_error_of_the_device_is_the_answer(kernel: Kernel, disk: SimulatedDisk, op: Op) -> None:
    disk.fail(op, 8, 8, error=errno.ENOSPC, times=1)
    asks: dict[Op, Callable[[], int]] = {
        Op.READ: lambda: kernel.read(4096, 512),
        Op.WRITE: lambda: kernel.write(4096, bytes(512)),
        Op.FLUSH: lambda: kernel.send(FSYNC, bytes(16)),
    }
    ask = asks[op]
    assert kernel.answer(ask()) == (ENOSPC, b"")
    assert kernel.answer(ask())[0] == 0


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE])
def test_a_write_within_a_block_that_cannot_be_done_changes_nothing(
    kernel: Kernel, disk: SimulatedDisk, op: Op
) -> None:
    before = bytes(disk.content)
    disk.fail(op, 8, 8)
    assert kernel.answer(kernel.write(4100, b"x")) == (EIO, b"")
    assert disk.content == before
    assert kernel.answer(kernel.write(0, b"x"))[0] == 0  # its turn is over


class Strict(StackedDevice):
    """A disk below which discarding leaves rubbish, as on many, and which notes requests."""

    def __init__(self, below: SimulatedDisk, reactor: Reactor) -> None:
        self.below = below
        self.reactor = reactor
        self.path, self.sectors = below.path, below.sectors
        self.logical_block_size = below.logical_block_size
        self.read_only = False
        self.seen: list[tuple[Op, int, int]] = []
        self.rubbish: list[int] = []

    def submit(self, request: Io) -> None:
        self.seen.append((request.op, request.sector, request.count))
        if request.op == Op.DISCARD:
            self.rubbish = [request.sector, request.sector + request.count - 1]
            for sector in self.rubbish:
                self.below.write(sector, b"\xff" * 512)
            self.reactor.call_soon(lambda: request.notify(request))  # type: ignore[misc]
            return
        region = request.region._replace(device=self.below)
        below = Io(request.op, region, request.memory, request.extents, request.notify)
        below.context = request.context
        below.notify = lambda done: self._ended(request, done)
        self.reactor.submit(below)

    def _ended(self, request: Io, done: Io) -> None:
        request.error = done.error
        request.notify(request)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(4096, 4096), (4096, 1 << 20), (700, 9000), (512, 512), (5, 20), (1000, 100), (SIZE - 99, 99)],
)
@pytest.mark.parametrize("mode", [PUNCH, ZERO, ZERO | 1])
def test_a_range_that_is_cleared_reads_as_zeroes(
    disk: SimulatedDisk, stack: ExitStack, offset: int, length: int, mode: int
) -> None:
    on = stack.enter_context(reactor())
    device = Strict(disk, on)
    kernel = Kernel(on, device)
    stack.callback(kernel.close)
    stack.callback(kernel.requests.close)
    expected = bytearray(disk.content)
    expected[offset : offset + length] = bytes(length)
    disk.load(bytes(expected[:offset]) + b"\x01" * length + bytes(expected[offset + length :]))
    assert kernel.answer(kernel.fallocate(offset, length, mode)) == (0, b"")
    assert disk.content == expected
    first, last = -(-offset // 512), (offset + length) // 512
    whole = [(first, last - first)] if first < last else []
    wanted = Op.DISCARD if mode == PUNCH else Op.WRITE_ZEROES
    asked = [(sector, count) for op, sector, count in device.seen if op == wanted]
    assert asked[:1] == whole


def test_a_device_that_cannot_discard_says_so(kernel: Kernel, disk: SimulatedDisk) -> None:
    before = bytes(disk.content)
    disk.fail(Op.DISCARD, 0, SECTORS, error=errno.EOPNOTSUPP)
    assert kernel.answer(kernel.fallocate(100, 4096, PUNCH)) == (EOPNOTSUPP, b"")
    assert disk.content == before


@pytest.mark.parametrize(
    ("offset", "length", "mode", "error"),
    [
        (0, 4096, 0, 0),
        (0, SIZE + 1, 0, ENOSPC),
        (0, SIZE + 1, 1, 0),
        (SIZE, 4096, PUNCH, 0),
        (SIZE - 512, 4096, ZERO, ENOSPC),
        (0, 4096, 0x08, EOPNOTSUPP),  # FALLOC_FL_COLLAPSE_RANGE
        (0, 4096, 0x40, EOPNOTSUPP),  # FALLOC_FL_UNSHARE_RANGE
    ],
)
def test_what_fallocate_does_otherwise(
    kernel: Kernel, disk: SimulatedDisk, offset: int, length: int, mode: int, error: int
) -> None:
    before = bytes(disk.content)
    assert kernel.answer(kernel.fallocate(offset, length, mode))[0] == error
    assert disk.content == before


@pytest.mark.parametrize(
    ("which", "size", "error"),
    [
        (FATTR_SIZE, 0, 0),  # open with O_TRUNC
        (FATTR_SIZE, SIZE, 0),
        (FATTR_SIZE, SIZE - 1, -errno.EINVAL),
        (FATTR_SIZE | FATTR_FH, 0, -errno.EINVAL),  # ftruncate
        (FATTR_MTIME, 0, 0),
        (FATTR_MODE, 0, -errno.EPERM),
    ],
)
def test_the_file_stays_as_long_as_the_device(
    kernel: Kernel, disk: SimulatedDisk, which: int, size: int, error: int
) -> None:
    before = bytes(disk.content)
    found, body = kernel.ask(SETATTR, setattr_body(which, size))
    assert found == error
    if not error:
        assert struct.unpack_from("=Q", body, 24) == (SIZE,)
    assert disk.content == before


def test_it_shows_the_size_that_the_device_has_now(kernel: Kernel, disk: SimulatedDisk) -> None:
    assert struct.unpack_from("=Q", kernel.ask(GETATTR, bytes(16))[1], 24) == (SIZE,)
    disk.sectors += 8
    disk.content += bytes(4096)
    assert kernel.answer(kernel.read(SIZE, 4096)) == (0, bytes(4096))
    assert kernel.told == [(2, struct.pack("=Qqq", 1, -1, 0))]
    assert struct.unpack_from("=Q", kernel.ask(GETATTR, bytes(16))[1], 24) == (SIZE + 4096,)


def test_blocks_are_those_that_the_device_has_now(kernel: Kernel, disk: SimulatedDisk) -> None:
    kernel.answer(kernel.read(0, 512))
    before = bytes(disk.content)
    disk.logical_block_size = 4096
    disk.fail(Op.READ, 0, 8, times=1)
    assert kernel.answer(kernel.write(512, b"x" * 512)) == (EIO, b"")  # the block is read first
    assert disk.content == before
    assert kernel.answer(kernel.write(512, b"x" * 512))[0] == 0
    assert disk.content == before[:512] + b"x" * 512 + before[1024:]


def test_a_read_only_device_is_not_written(disk: SimulatedDisk, stack: ExitStack) -> None:
    disk.read_only = True
    before = bytes(disk.content)
    kernel = over(disk, stack)
    assert kernel.answer(kernel.write(0, bytes(512))) == (-errno.EROFS, b"")
    assert kernel.answer(kernel.fallocate(0, 512, PUNCH)) == (-errno.EROFS, b"")
    assert kernel.ask(OPEN, struct.pack("=II", os.O_RDWR, 0))[0] == -errno.EROFS
    assert kernel.ask(OPEN, struct.pack("=II", os.O_RDONLY, 0))[0] == 0
    assert disk.content == before


def test_what_it_does_not_know_it_refuses(kernel: Kernel) -> None:
    assert kernel.ask(IOCTL, bytes(32)) == (-errno.ENOTTY, b"")
    assert kernel.ask(LSEEK, bytes(24)) == (-errno.ENOSYS, b"")
    assert kernel.ask(INTERRUPT, bytes(8)) == (-errno.ENOSYS, b"")
    assert kernel.ask(9999) == (-errno.ENOSYS, b"")
    assert kernel.ask(STATFS)[0] == 0
    forget = kernel.send(FORGET, bytes(8))
    kernel.ask(STATFS)
    assert forget not in kernel.answers


def test_a_kernel_that_is_too_old_is_refused(kernel: Kernel) -> None:
    assert kernel.ask(INIT, struct.pack("=IIII", 7, 27, 0, 0))[0] == -errno.EPROTO
    assert kernel.ask(INIT, struct.pack("=IIII", 7, 28, 0, 0))[0] == 0


def test_a_request_cut_short_is_an_error_of_its_own(kernel: Kernel) -> None:
    told: list[Exception] = []
    kernel.reactor.on_exception = told.append
    assert kernel.ask(SETATTR, bytes(4)) == (EIO, b"")
    assert len(told) == 1
    assert kernel.ask(GETATTR, bytes(16))[0] == 0


def test_many_requests_at_once_wait_for_room(kernel: Kernel, disk: SimulatedDisk) -> None:
    sent = {}
    for place in range(4 * DEPTH):
        start = 512 * place
        try:
            sent[start] = kernel.read(start, 512)
        except BlockingIOError:  # as many as the socket keeps: the requests wait in it
            break
    assert len(sent) > DEPTH
    kernel.until(lambda: kernel.requests.under_way == DEPTH)
    for start, unique in sent.items():
        assert kernel.answer(unique) == (0, bytes(disk.content[start : start + 512]))
    assert kernel.requests.under_way == 0


def test_a_device_that_raises_ends_what_it_was_asked(disk: SimulatedDisk, stack: ExitStack) -> None:
    on = stack.enter_context(reactor())
    told: list[Exception] = []
    on.on_exception = told.append

    class Broken(Strict):
        def submit(self, request: Io) -> None:
            del request
            raise RuntimeError("a mistake")

    kernel = Kernel(on, Broken(disk, on))
    stack.callback(kernel.close)
    stack.callback(kernel.requests.close)
    assert kernel.answer(kernel.read(0, 512)) == (EIO, b"")
    assert kernel.answer(kernel.write(0, bytes(512))) == (EIO, b"")
    assert kernel.answer(kernel.write(3, b"x")) == (EIO, b"")
    assert kernel.answer(kernel.fallocate(0, 512, PUNCH)) == (EIO, b"")
    assert kernel.requests.under_way == 0
    assert [str(error) for error in told] == ["a mistake"] * 4


def test_the_end_of_the_mount_is_told(kernel: Kernel) -> None:
    kernel.close()
    kernel.until(lambda: kernel.gone)


def test_what_is_under_way_at_the_end_is_answered_to_nobody(
    kernel: Kernel, disk: SimulatedDisk
) -> None:
    sent = kernel.write(0, b"x" * 512)
    kernel.until(lambda: kernel.requests.under_way)
    kernel.requests.close()
    kernel.until(lambda: kernel.requests.under_way == 0)
    kernel.requests.release()
    assert disk.content[:512] == b"x" * 512
    kernel._socket.setblocking(False)
    assert kernel._socket.recv(100) == b""
    assert sent not in kernel.answers


def test_one_that_asks_for_one_thing_at_a_time_is_not_read_from_in_vain(
    disk: SimulatedDisk, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = over(disk, stack)
    calls = 0
    readv = os.readv

    def counted(fd: int, into: Sequence[bytearray]) -> int:
        nonlocal calls
        calls += 1
        return readv(fd, into)

    monkeypatch.setattr("os.readv", counted)
    for number in range(10):
        assert kernel.answer(kernel.read(number * 4096, 4096))[0] == 0
    assert calls == 10
    asked = [kernel.read(number * 4096, 4096) for number in range(10)]
    assert all(kernel.answer(unique)[0] == 0 for unique in asked)
    assert calls <= 22  # the last of several finds that there is no other
