"""A workload on two sides, in an order in which the end of its steps is not left to chance."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeGuard

from dmcopy.io.request import Op
from dmcopy.testing.compare import Comparison, DifferenceError
from dmcopy.testing.mirrors import Heal
from dmcopy.testing.steps import Access, Burst, Cycle, Step, Swap

from .sides import KernelSide, UserSide, differing_legs

QUIET_SECONDS = 60.0


def changes(step: Step) -> Iterator[Access]:
    """Yield the writes and discards of a step."""
    if isinstance(step, Burst):
        yield from (one for one in step.accesses if one.op in (Op.WRITE, Op.DISCARD))


def suspends(step: Step | None) -> TypeGuard[Cycle | Swap]:
    """Whether a step suspends the mirror."""
    return isinstance(step, Cycle | Swap) and step.device == "m"


def in_order(step: Step, user: UserSide) -> list[Step]:
    """Return what is done for a step while bios are held.

    Several that are taken up again together meet each other, and the kernel itself then ends now
    this way and now that: whether a region is recovered before the write to it comes, or how many
    failures its worker finds in one pass. So the disks are healed before, and the bios failed
    if the table stays.

    A single flush goes round and round in the kernel, from the start of a suspend without flush
    until I/O is blocked, and raises two events each time if it fails (some hundred were seen). So
    the disks are healed before, too.

    A write that is held when no leg is valid any more ends with EIO, or goes back unharmed if the
    kernel blocks I/O before it comes round (seen once). So it is failed by a flush.
    """
    if not suspends(step) or not user.held:
        return [step]
    heal = Heal(tuple(sorted(user.faulty)))
    flushing = replace(step, flush=True)
    if user.held > 1:
        failed = isinstance(step, Cycle) or not user.has_a_valid_leg
        return [heal, flushing if failed else step]
    if not user.has_a_valid_leg:
        return [flushing]
    return [heal, step] if user.holds_a_flush else [step]


class History(Comparison):
    """A workload on both engines, after whose steps the kernel shows what ours shows."""

    def __init__(self, user: UserSide, kernel: KernelSide) -> None:
        super().__init__(user, kernel, patience=QUIET_SECONDS)
        self.user, self.kernel = user, kernel

    def play(self, steps: Iterable[Step]) -> None:
        """Play the steps, but none that writes to where a write is held: which is last is open."""
        self.compare()
        for chosen in steps:
            if not any(map(self.user.is_held, changes(chosen))):
                for step in in_order(chosen, self.user):
                    self.do(step)

    def do(self, step: Step) -> None:
        """Do one step, ours first, and compare."""
        self.steps.append(step)
        step.do(self.user)
        self.user.settle()
        step.do(self.kernel)
        self.compare()

    def compare(self) -> None:
        """Wait until the kernel is quiet and shows what our engine shows."""
        self.user.settle()
        ours = self.user.seen()
        deadline = time.monotonic() + self.patience
        while True:
            quiet = self.kernel.is_quiet()
            differs = ours.differs(self.kernel.seen()) or differing_legs(self.user, self.kernel)
            if (quiet and not differs) or time.monotonic() > deadline:
                break
            self.kernel.step()
        if differs or not quiet:
            found = differs or ["the kernel goes on with something"]
            raise DifferenceError("\n".join(found), {}, self.steps)
