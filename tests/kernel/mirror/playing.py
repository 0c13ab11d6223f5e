"""A workload on two sides, in an order in which the end of its steps is not left to chance."""

from __future__ import annotations

import pickle
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

from dmcopy.atomic import replace_file
from dmcopy.io.request import Op
from dmcopy.testing.compare import Comparison, DifferenceError
from dmcopy.testing.mirrors import LEGS, Heal, MirrorWorkload
from dmcopy.testing.steps import Access, Burst, Cycle, Step, Swap

from .sides import KernelSide, Look, UserSide, differing_legs

QUIET_SECONDS = 60.0
NOTES = Path(__file__).parents[3] / "build" / "mirror-workloads"


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


@dataclass(frozen=True)
class Moment:
    """What ours shows when all is quiet after a step, and checksums of its legs."""

    step: Step | None
    look: Look
    legs: tuple[int, ...]


def ours(user: UserSide, workload: MirrorWorkload, count: int) -> Generator[Moment, None, None]:
    """Play a workload on our engine, and yield what is to be done to the kernel and seen then.

    None of its steps writes to where a write is held: which is last is open.
    """
    workload.fill(user)
    user.make(workload.table(), readonly=workload.readonly)
    try:
        yield _moment(user, None)
        for chosen in workload.steps(count):
            if not any(map(user.is_held, changes(chosen))):
                for step in in_order(chosen, user):
                    step.do(user)
                    yield _moment(user, step)
    finally:
        user.heal()
        user.drop()


def _moment(user: UserSide, step: Step | None) -> Moment:
    user.settle()
    return Moment(step, user.seen(), user.checksums())


class History(Comparison):
    """A workload on the kernel, which shows what ours has shown; `user` plays it at that moment."""

    def __init__(self, kernel: KernelSide, user: UserSide | None = None) -> None:
        super().__init__(kernel, user or kernel, patience=QUIET_SECONDS)
        self.user, self.kernel = user, kernel

    def play_as(self, moments: Iterable[Moment]) -> None:
        """Do their steps, and compare after each."""
        for moment in moments:
            if moment.step is not None:
                self.steps.append(moment.step)
                moment.step.do(self.kernel)
            self.compare(moment)

    def compare(self, moment: Moment) -> None:
        """Wait until the kernel is quiet and shows what our engine shows."""
        deadline = time.monotonic() + self.patience
        while True:
            quiet = self.kernel.is_quiet()
            differs = moment.look.differs(self.kernel.seen()) or self._differing_legs(moment)
            if (quiet and not differs) or time.monotonic() > deadline:
                break
            self.kernel.step()
        if differs or not quiet:
            found = differs or ["the kernel goes on with something"]
            raise DifferenceError("\n".join(found), {}, self.steps)

    def _differing_legs(self, moment: Moment) -> list[str]:
        if self.user is not None:
            return differing_legs(self.user, self.kernel)
        pairs = zip(LEGS, moment.legs, self.kernel.checksums(), strict=True)
        return [f"leg {leg}" for leg, one, other in pairs if one != other]


# What ours shows, noted on the host.


def note(user: UserSide, seeds: Iterable[int], count: int) -> None:
    """Note the moments of workloads, a file for each seed."""
    NOTES.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        moments = list(ours(user, MirrorWorkload(seed), count))
        replace_file(NOTES / str(seed), pickle.dumps(moments))


def noted(seed: int) -> list[Moment] | None:
    """Return what was noted of a workload, if it was."""
    try:
        found: list[Moment] = pickle.loads((NOTES / str(seed)).read_bytes())
    except FileNotFoundError:
        return None
    return found
