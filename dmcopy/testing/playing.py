"""The seeded histories of `dmcopy.testing.workload`, played on two engines and compared."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from dmcopy.testing.compare import PATIENCE_SECONDS, Comparison, pair
from dmcopy.testing.steps import AwaitMerge, Burst, Load, Resume, Step
from dmcopy.testing.workload import DISK_SECTORS, NOTHING, SNAPSHOTS, Workload

_DISKS = {f"disk{number}": DISK_SECTORS for number in (0, *SNAPSHOTS)}
_LOWS = tuple(f"low{number}" for number in (0, *SNAPSHOTS))
_TOPS = ("origin", *(f"snap{number}" for number in SNAPSHOTS))


class _History(Comparison):
    """What is there is compared now and then, not only at the end; nothing while a merge runs."""

    _merging = False
    _bursts = 0

    def after(self, step: Step) -> None:
        match step:
            case Burst():
                self._bursts += 1
            case Load("origin", table) if " snapshot-merge " in table:
                self._merging = True
            case AwaitMerge():
                self._merging = False
        if not self._merging and isinstance(step, Burst | Resume | AwaitMerge):
            super().after(step)
            if self._bursts > 3:
                self._bursts = 0
                self.at_end()

    def at_end(self) -> None:
        self.same("content", *(harness.contents() for harness in self.both))


def play_workload(
    seed: int,
    *,
    depth: int = 1,
    length: int = 20,
    patience: float = PATIENCE_SECONDS,
    **options: Any,
) -> None:
    """Play one history. `patience`: as of `Comparison`. The other options are those of `pair`.

    Raises DifferenceError.
    """
    options.setdefault("engines", ("user", "user"))
    workload = Workload(seed, depth=depth, length=length)
    content = random.Random(seed).randbytes(workload.sectors << 9)
    with pair(_DISKS, **options) as both:
        for harness in both:
            harness.disks.poke("disk0", 0, content)
        _History(*both, patience=patience).play(_steps(workload))


def _steps(workload: Workload) -> Iterator[Step]:
    for name in (*_LOWS, *_TOPS):
        yield Load(name, NOTHING)
        yield Resume(name)
    yield from workload.steps()
