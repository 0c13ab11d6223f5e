"""Legs and log go from one engine to the other, cleanly or as a crash left them: only the regions
that the log calls dirty are copied again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from dmcopy.io.request import Op
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.testing.mirrors import SIZES, fault, fill
from dmcopy.testing.steps import Access

from .conftest import Pair
from .sides import DONE_SECONDS, MirrorSide

pytestmark = pytest.mark.kernel(either=True)  # all kernels have the same log on the disk

REGION = 16
REGIONS = 24
LENGTH = REGION * REGIONS - 5  # the last region is short
TABLE = f"0 {LENGTH} mirror disk 2 @l {REGION} 3 @a 0 @b 8 @c 0 1 handle_errors"
ALL = set(range(REGIONS))


def _clean(side: MirrorSide) -> set[int]:
    """Write here and there; the mirror is removed as it should be before it is taken over."""
    side.make(TABLE)
    _wait(side, lambda: _is_in_sync(side), "the first sync")
    rng = random.Random(1)
    for _ in range(5):
        sector = rng.randrange(LENGTH - 8)
        number = side.begin(Access(Op.WRITE, "m", sector, 8, rng.getrandbits(32)))
        _wait(side, lambda number=number: side.has_ended(number), "a write")  # type: ignore[misc]
    return set()


def _writing(side: MirrorSide) -> set[int]:
    """Crash while writes to regions 3, 4 and 23 are under way: a leg is slow."""
    side.make(TABLE)
    _wait(side, lambda: _is_in_sync(side), "the first sync")
    fault("b", "0 2048 delay @ 0 0 @ 0 20000 @ 0 0").do(side)
    for sector, count in ((3 * REGION + 8, 16), (LENGTH - 1, 1)):
        side.begin(Access(Op.WRITE, "m", sector, count, sector))
    _wait(side, lambda: _dirty(side) == {3, 4, 23}, "the log to know of the writes")
    return {3, 4, 23}


def _syncing(side: MirrorSide) -> set[int]:
    """Crash in the middle of the first sync: a leg is so slow that it stops there."""
    slow = "168 160 delay @ 168 0 @ 168 20000 @ 168 0"
    fault("b", "0 168 linear @ 0", slow, "328 1720 linear @ 328").do(side)
    side.make(TABLE)
    _wait(side, lambda: _dirty(side) == ALL - set(range(10)), "the sync to get to the slow place")
    return ALL - set(range(10))


@pytest.mark.parametrize("crash", [_clean, _writing, _syncing], ids=lambda one: one.__name__[1:])
@pytest.mark.parametrize("ours_first", [True, False], ids=["to-kernel", "from-kernel"])
def test_only_dirty_regions_are_copied_again(
    pair: Pair, ours_first: bool, crash: Callable[[MirrorSide], set[int]]
) -> None:
    first, second = pair if ours_first else (pair[1], pair[0])
    for one in pair:
        fill(one, 7, alike=False, log=b"")
    try:
        expected = crash(first)
        image = _image(first)
    finally:
        first.heal()
        first.drop()
    if crash is _clean:
        image = _image(first)
    for disk, data in image.items():
        second.poke(disk, data)
    assert _dirty(second) == expected
    # One byte of each region is made different on leg b: a copy makes it the same again.
    for region in range(REGIONS):
        sector = 8 + region * REGION
        second.poke("b", bytes([image["b"][sector << 9] ^ 1]), sector)
    second.make(TABLE)
    try:
        _wait(second, lambda: second.events("m") == 1 and not _dirty(second), "the resync")
        assert _is_in_sync(second)
        assert _copied(second) == expected
    finally:
        second.drop()


def test_ours_and_back_and_forth(pair: Pair) -> None:
    """Each engine in turn continues where the other was shut down; nothing is ever copied again."""
    for one in pair:
        fill(one, 8, alike=False, log=b"")
    expected: bytearray | None = None
    sides = [pair[0], pair[1]] * 2
    for turn, side in enumerate(sides):
        if turn:
            for disk in SIZES:
                side.poke(disk, sides[turn - 1].peek(disk))
            assert not _dirty(side)
        side.make(TABLE)
        try:
            _wait(side, lambda side=side: _is_in_sync(side), "the sync")  # type: ignore[misc]
            expected = expected or bytearray(side.peek("a"))
            sector = random.Random(turn).randrange(LENGTH - 20)
            access = Access(Op.WRITE, "m", sector, 20, turn)
            number = side.begin(access)
            expected[sector << 9 : sector + 20 << 9] = access.data
            _wait(side, lambda: side.has_ended(number), "a write")  # noqa: B023
        finally:
            side.drop()
        assert side.peek("a") == expected
        size = LENGTH << 9
        assert side.peek("c")[:size] == expected[:size] == side.peek("b")[4096 : 4096 + size]


def _image(side: MirrorSide) -> dict[str, bytes]:
    return {disk: side.peek(disk) for disk in SIZES}


def _dirty(side: MirrorSide) -> set[int]:
    data = side.peek("l")
    return set(MirrorLog.parse(data).dirty()) if any(data[:4]) else ALL


def _is_in_sync(side: MirrorSide) -> bool:
    return f" {REGIONS}/{REGIONS} 1 AAA " in side.status("m")


def _copied(side: MirrorSide) -> set[int]:
    a, b = side.peek("a"), side.peek("b")
    return {
        region
        for region in range(REGIONS)
        if a[region * REGION << 9] == b[(8 + region * REGION) << 9]
    }


def _wait(side: MirrorSide, done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DONE_SECONDS
    while not done():
        assert time.monotonic() < deadline, f"waited in vain for {what}: {side.status('m')}"
        side.step()
