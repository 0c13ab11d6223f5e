"""What is asked of the kernel's io_uring, word by word, by include/uapi/linux/io_uring.h of 6.1.

A field that an operation has no use for is 0: what one kernel passes over, the next refuses, or has
given a meaning to (the `len` of a poll became its flags in 5.13, the padding of a wait's argument a
minimal wait in 6.12).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dmcopy.block import BlockDevice
from dmcopy.io import CopyIo, Io, IoRegion, Memory, Op, Reactor, probe
from dmcopy.io import ring as rings
from dmcopy.io.request import Request
from dmcopy.io.ring import Ring, probe_ring

pytestmark = pytest.mark.skipif(bool(probe()["uring"]), reason=probe()["uring"])

NOP, READV, WRITEV, FSYNC, READ_FIXED, WRITE_FIXED, POLL, READ, WRITE = *range(7), 22, 23
LINKED_AND_SILENT = 1 << 2 | 1 << 6  # IOSQE_IO_LINK, IOSQE_CQE_SKIP_SUCCESS
SETUP, ENTER, REGISTER = 425, 426, 427
GETEVENTS, EXT_ARG = 1, 8
SINGLE_ISSUER, DEFER_TASKRUN = 1 << 12, 1 << 13


class Entry(NamedTuple):
    """`struct io_uring_sqe`; `others`: buffer, personality, second descriptor, padding.

    `vector`: what the address and length of a readv or writev point to.
    """

    code: int
    flags: int
    priority: int
    fd: int
    offset: int
    address: int
    length: int
    op_flags: int
    user_data: int
    others: int
    vector: bytes = b""


def entry(code: int, fd: int, user_data: int, **fields: int) -> Entry:
    """An entry with 0 in what is not given."""
    words: dict[str, Any] = {name: fields.get(name, 0) for name in Entry._fields[:-1]}
    return Entry(**words | {"code": code, "fd": fd, "user_data": user_data})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """The entries that are handed to the kernel, from here on."""
    entries: list[Entry] = []
    queue = Ring.queue

    def noting(ring: Ring, indices: list[int]) -> None:
        for index in indices:
            *words, others = struct.unpack_from("<BBHiQQIIQ24s", ring.sqes, 64 * index)
            words.append(int.from_bytes(others, "little"))
            each = Entry(*words)
            if each.code in (READV, WRITEV):
                each = each._replace(vector=ctypes.string_at(each.address, 16 * each.length))
            entries.append(each)
        queue(ring, indices)

    monkeypatch.setattr(Ring, "queue", noting)
    return entries


@pytest.fixture
def device(tmp_path: Path) -> Iterator[BlockDevice]:
    path = tmp_path / "device"
    path.write_bytes(bytes(1 << 20))
    with BlockDevice.open(path, write=True) as device:
        yield device


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(4)
    yield memory
    memory.close()


def do(reactor: Reactor, request: Request) -> None:
    done: list[Request] = []
    request.notify = done.append
    reactor.submit(request)
    reactor.run_until(lambda: done, 20, "I/O")
    assert (request.error, getattr(request, "write_errors", {})) == (0, {})


def test_one_extent_is_asked_for_without_a_vector(
    asked: list[Entry], device: BlockDevice, memory: Memory
) -> None:
    """Which would have to be made, kept, and read by the kernel: most requests have one extent."""
    fd, region = device.fileno(), IoRegion(device, 24, 8)
    with Reactor("uring") as reactor:
        reactor.step()
        slot = asked.pop().user_data  # of the poll, which comes first
        assert slot == 0
        for request in (
            Io(Op.READ, region, memory, ((4096, 4096),)),
            Io(Op.WRITE, region, memory, ((4096, 4096),)),
            Io(Op.WRITE, region, memory, ((4096, 4096),), fua=True),
            Io(Op.FLUSH, region),
        ):
            do(reactor, request)
    place = {"offset": 24 * 512, "address": memory.address + 4096, "length": 4096}
    tags = [each.user_data for each in asked]
    assert not any(tag % 2 for tag in tags), "the second of a slot is for writes of copies"
    assert asked == [
        entry(READ, fd, tags[0], **place),
        entry(WRITE, fd, tags[1], **place),
        entry(WRITE, fd, tags[2], **place, op_flags=os.RWF_DSYNC),
        entry(FSYNC, fd, tags[3], op_flags=1),  # IORING_FSYNC_DATASYNC, of the whole file
    ]


def test_several_extents_are_a_vector(
    asked: list[Entry], device: BlockDevice, memory: Memory
) -> None:
    fd, start = device.fileno(), memory.address
    with Reactor("uring") as reactor:
        reactor.step()
        asked.clear()
        for op in (Op.READ, Op.WRITE):
            do(reactor, Io(op, IoRegion(device, 24, 8), memory, ((4096, 512), (0, 3584))))
    vector = struct.pack("4Q", start + 4096, 512, start, 3584)
    for each, code in zip(asked, (READV, WRITEV), strict=True):
        plain = entry(code, fd, each.user_data, offset=24 * 512, address=each.address, length=2)
        assert each == plain._replace(vector=vector)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_copy_is_a_read_linked_to_a_write(
    pinned: bool,
    asked: list[Entry],
    device: BlockDevice,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fd, syscall = device.fileno(), rings._syscall
    registered: list[bool] = []

    def noting(number: int, *words: Any) -> int:
        result = int(syscall(number, *words))
        if number == REGISTER and words[1] == 0:  # IORING_REGISTER_BUFFERS
            registered.append(result == 0)
        return result

    monkeypatch.setattr(rings, "_syscall", noting)
    with Reactor("uring") as reactor:
        if pinned:
            reactor.pin(memory)
        pinned = True in registered  # RLIMIT_MEMLOCK may forbid it
        reactor.step()
        asked.clear()
        source, dest = IoRegion(device, 8, 8), IoRegion(device, 64, 8)
        do(reactor, CopyIo(source, [dest], memory, ((8192, 4096),), print))
        do(reactor, CopyIo(source, [dest], memory, ((0, 512), (8192, 3584)), print))
    read, write, readv, writev = asked
    slot = read.user_data
    flags, place = LINKED_AND_SILENT, {"address": memory.address + 8192, "length": 4096}
    codes = (READ_FIXED, WRITE_FIXED) if pinned else (READ, WRITE)
    assert read == entry(codes[0], fd, slot, flags=flags, offset=4096, **place)
    assert write == entry(codes[1], fd, slot + 1, offset=64 * 512, **place)
    place, slot = {"address": readv.address, "length": 2}, readv.user_data
    vector = struct.pack("4Q", memory.address, 512, memory.address + 8192, 3584)
    plain = entry(READV, fd, slot, flags=flags, offset=4096, **place)
    assert readv == plain._replace(vector=vector)
    plain = entry(WRITEV, fd, slot + 1, offset=64 * 512, **place)
    assert writev == plain._replace(vector=vector)


def test_the_poller_is_polled_once_and_again_when_it_has_rung(asked: list[Entry]) -> None:
    with Reactor("uring") as reactor:
        fd = reactor._poller.fileno()
        for _ in range(3):
            reactor.step()
        poll = entry(POLL, fd, 0, op_flags=select.EPOLLIN)
        assert asked == [poll]
        for _ in range(2):
            reactor.call_soon_threadsafe(lambda: None)
            reactor.step()
            reactor.step()
        assert asked == [poll] * 3


def test_what_a_probe_asks(asked: list[Entry]) -> None:
    assert probe_ring() == ""
    fds = [each.fd for each in asked]
    assert max(fds) < 0, "a descriptor could be that of a file"
    assert asked == [
        entry(READ, fds[0], 1, flags=LINKED_AND_SILENT),
        entry(WRITE, fds[1], 2),
        entry(NOP, fds[2], 3),
    ]


Call = tuple[Any, ...]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The system calls that are made, from here on, with what their arguments point to."""
    made: list[Call] = []
    syscall = rings._syscall

    def noting(number: int, *words: Any) -> int:
        if number == SETUP:
            made.append((number, words[0], bytes(words[1])))
        elif number == ENTER and words[3] & EXT_ARG:
            argument = ctypes.string_at(words[4].value, words[5].value)
            made.append((number, *words[1:4], argument))
        else:
            made.append((number, *words))
        return int(syscall(number, *words))

    monkeypatch.setattr(rings, "_syscall", noting)
    return made


def test_what_a_ring_calls(calls: list[Call]) -> None:
    ring = Ring(4)
    assert ring.enter(0, 0) == 0
    assert ring.enter(0, 0, 2.25) == 0  # waits for nothing
    assert ring.enter(0, 1, 0.0) == 0
    ring.unregister_buffer()
    waited = bytes(ring._timespec)
    ring.close()
    params = struct.pack("<8xI", SINGLE_ISSUER | DEFER_TASKRUN) + bytes(108)
    setup, *enters, unregister, closing = calls
    assert setup == (SETUP, 4, params)
    plain = (ENTER, ring.fd, 0, 0, GETEVENTS, None, 0)
    address = ctypes.addressof(ring._timespec)
    argument = struct.pack("<QIIQ", 0, 0, 0, address)
    assert enters == [plain, plain, (ENTER, 0, 1, GETEVENTS | EXT_ARG, argument)]
    assert unregister == (REGISTER, ring.fd, 1, None, 0)
    assert closing == plain
    assert waited == bytes(16)


def test_how_long_a_ring_waits_is_told_in_seconds_and_nanoseconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring = Ring(4)
    monkeypatch.setattr(rings, "_syscall", lambda *_: 0)
    ring.enter(0, 1, 3.25)
    monkeypatch.undo()
    assert struct.unpack("<qq", bytes(ring._timespec)) == (3, 250_000_000)
    ring.close()


def older(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Any], int]) -> None:
    """Have `change(flags, params)` tell what becomes of a ring that is set up: an errno, or 0."""
    syscall = rings._syscall

    def changed(number: int, *words: Any) -> int:
        if number != SETUP:
            return int(syscall(number, *words))
        if why := change(struct.unpack_from("<8xI", words[1])[0], words[1]):
            ctypes.set_errno(why)
            return -1
        fd = int(syscall(number, *words))
        change(0, words[1])
        return fd

    monkeypatch.setattr(rings, "_syscall", changed)


def test_a_kernel_before_6_1_has_no_deferred_ring(
    monkeypatch: pytest.MonkeyPatch, calls: list[Call], device: BlockDevice, memory: Memory
) -> None:
    """It runs its completions by itself: nothing has to be entered for them."""
    older(monkeypatch, lambda flags, _: errno.EINVAL if flags else 0)
    with Reactor("uring") as reactor:
        do(reactor, Io(Op.WRITE, IoRegion(device, 0, 8), memory, ((0, 4096),)))
        ring = reactor.backend._ring  # type: ignore[attr-defined]
        calls.clear()
        assert ring.enter(0, 0) == 0
        assert calls == [(ENTER, ring.fd, 0, 0, 0, None, 0)]


@pytest.mark.parametrize("lacks", [1, 1 << 8])
def test_a_kernel_before_5_11_is_not_used(lacks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no wait with a deadline; and its ring is closed again."""

    def without(_flags: int, params: Any) -> int:
        features = struct.unpack_from("<20xI", params)[0]
        struct.pack_into("<I", params, 20, features & ~lacks)
        return 0

    before = set(os.listdir("/proc/self/fd"))
    older(monkeypatch, without)
    refused = "the kernel refuses io_uring (this kernel's io_uring is older than 5.11)"
    assert probe_ring() == refused
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_kernel_before_5_17_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It completes what was cancelled behind a failed link: of a slot that is used anew by then."""
    monkeypatch.setattr(Ring, "reap", lambda _: [1, 0, 2, 0, 3, 0])
    assert probe_ring() == "a failed link completed as [1, 2, 3]: io_uring is older than 5.17"
