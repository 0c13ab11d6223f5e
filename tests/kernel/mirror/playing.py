"""Doing the steps of a workload on a side, in an order in which their end is not left to chance."""

from __future__ import annotations

import random
import time
from typing import Any

from dmcopy.io.request import Op

from .sides import HELD_SECONDS, KernelSide, Side, UserSide
from .workload import Step


def written(step: Step) -> list[tuple[int, int]]:
    """Return the first sector and the count of each write of a step."""
    if step.what == "burst":
        return [place[:2] for place in step.words]
    return [step.words[:2]] if step.what in ("write", "discard") else []


def in_order(step: Step, user: UserSide) -> list[Step]:
    """Return what is done for a step while bios are held.

    Several that are taken up again at once meet each other, and the kernel itself then ends now
    this way and now that: whether a region is recovered before the write to it comes, or how many
    failures its worker finds in one pass. So the disks are healed before, and the bios failed
    if the table stays.

    A single flush goes round and round in the kernel, from the start of a suspend without flush
    until I/O is blocked, and raises two events each time if it fails (some hundred were seen). So
    the disks are healed before, too.

    A write that is held when no leg is valid any more ends with EIO, or goes back unharmed if the
    kernel blocks I/O before it comes round (seen once). So it is failed by a flush.
    """
    if step.what not in ("cycle", "reload") or not user.held:
        return [step]
    flushing = step._replace(words=(*step.words[:-1], True))
    if user.held > 1:
        failed = step.what == "cycle" or not user.has_a_valid_leg
        return [Step("heal"), flushing if failed else step]
    if not user.has_a_valid_leg:
        return [flushing]
    return [Step("heal"), step] if user.holds_a_flush else [step]


def do(side: Side, step: Step) -> None:
    action: Any = globals()[f"_do_{step.what}"]
    action(side, *step.words)


def _finish(side: Side, *numbers: int) -> None:
    """Wait for requests. Ours is quiet when they are held; the kernel gets a moment to end them.

    One that ends later on the kernel, and is held by us, is found at the next comparison.
    """
    if isinstance(side, UserSide):
        side.settle()
    else:
        end = time.monotonic() + HELD_SECONDS
        while time.monotonic() < end and not all(map(side.has_ended, numbers)):
            assert isinstance(side, KernelSide)
            side.step()


def _do_write(side: Side, sector: int, count: int, seed: int, fua: bool) -> None:
    data = random.Random(seed).randbytes(count << 9)
    _finish(side, side.start(Op.WRITE, sector, count, data, fua=fua))


def _do_burst(side: Side, *places: tuple[int, int, int]) -> None:
    numbers = [
        side.start(Op.WRITE, sector, count, random.Random(seed).randbytes(count << 9))
        for sector, count, seed in places
    ]
    _finish(side, *numbers)


def _do_read(side: Side, sector: int, count: int) -> None:
    _finish(side, side.start(Op.READ, sector, count))


def _do_flush(side: Side) -> None:
    _finish(side, side.start(Op.FLUSH, 0, 0))


def _do_discard(side: Side, sector: int, count: int) -> None:
    _finish(side, side.start(Op.DISCARD, sector, count))


def _do_fault(side: Side, disk: str, *lines: str) -> None:
    side.fault(disk, *lines)


def _do_heal(side: Side, *disks: str) -> None:
    side.heal(*disks)


def _do_cycle(side: Side, flush: bool) -> None:
    side.suspend(flush)
    side.resume()


def _do_reload(side: Side, table: str, readonly: bool, flush: bool) -> None:
    side.load(table, readonly=readonly)
    side.suspend(flush)
    side.resume()
