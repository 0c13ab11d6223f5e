"""The ring itself: entries and completions in order, and waiting with a deadline."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import time
from collections.abc import Iterator

import pytest

from dmcopy.io import probe
from dmcopy.io import ring as rings
from dmcopy.io.ring import SQE, SQE_SIZE, Ring, signed

NOP, ENTRIES = 0, 4


@pytest.fixture
def ring() -> Iterator[Ring]:
    if why := probe()["uring"]:
        pytest.skip(f"no io_uring here: {why}")
    ring = Ring(ENTRIES)
    yield ring
    ring.close()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM, errno.ENOSYS])
def test_a_ring_that_the_kernel_refuses(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(rings, "_syscall", refuse)
    with pytest.raises(OSError, match="io_uring_setup") as refused:
        Ring(ENTRIES)
    assert refused.value.errno == number


def test_what_no_wait_ends_with_is_an_error(ring: Ring) -> None:
    """Or a reactor would ask for ever what the kernel will not do."""
    ring_fd, ring.fd = ring.fd, -1
    with pytest.raises(OSError, match="io_uring_enter") as refused:
        ring.enter(0, 0)
    ring.fd = ring_fd
    assert refused.value.errno == errno.EBADF


def test_a_result_is_a_length_or_minus_an_errno() -> None:
    """In 32 bits, below flags. Taken for a length, an error would be a short transfer."""
    flags = 3 << 32
    assert [signed(flags | word) for word in (0, 4096, 2**31 - 1)] == [0, 4096, 2**31 - 1]
    assert [signed(flags | 2**32 - number) for number in (1, 5, 2**31)] == [-1, -5, -(2**31)]


def put(ring: Ring, indices: list[int], first: int) -> list[int]:
    """Queue entries that do nothing; return what `reap` will say of them."""
    for number, index in enumerate(indices):
        SQE.pack_into(ring.sqes, index * SQE_SIZE, NOP, 0, 0, -1, 0, 0, 0, 0, first + number)
    ring.queue(indices)
    return [word for number in range(len(indices)) for word in (first + number, 0)]


def test_every_number_of_entries_at_every_place_of_the_ring(ring: Ring) -> None:
    first = 1
    for count in (1, 2, 3, 4, 3, 1, 4, 4, 2, 3, 3, 1) * 3:
        expected = put(ring, [3, 1, 0, 2][:count], first)
        assert ring.enter(count, count) == count
        assert ring.reap() == expected
        assert ring.reap() == []
        first += count


def test_completions_may_lie_until_there_are_twice_as_many_as_entries(ring: Ring) -> None:
    expected: list[int] = []
    for round_ in range(7):
        expected += put(ring, [0, 1, 2, 3], 10 * round_)
        assert ring.enter(4, 0) == 4
        if round_ % 2:
            ring.enter(0, 8)
            assert ring.reap() == expected
            expected = []


def test_a_wait_ends_at_its_deadline(ring: Ring) -> None:
    for seconds in (0.02, 1.02):
        began = time.monotonic()
        assert ring.enter(0, 1, seconds) == 0
        assert time.monotonic() - began >= seconds
    expected = put(ring, [0], 5)
    assert ring.enter(1, 1, 60) == 1
    assert ring.reap() == expected


def test_a_completion_rings(ring: Ring) -> None:
    waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        ring.register_eventfd(waker)
        put(ring, [0], 1)
        ring.enter(1, 1)
        poll = select.poll()  # not select, which takes no descriptor from 1024 on
        poll.register(waker, select.POLLIN)
        assert poll.poll(60_000) == [(waker, select.POLLIN)]
    finally:
        os.close(waker)
