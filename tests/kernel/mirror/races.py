"""The workloads that differed once and then did not: which of that is known, and how much may be.

Some of what a mirror does is decided by the kernel's timing. A workload that differs for such a
reason is run again, and it is noted: what differs is EVENTS or HELD, or the test fails, and so
it does when more than one workload in RATE needs it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from dmcopy.testing.compare import DifferenceError
from dmcopy.testing.steps import Step

from .playing import suspends

RATE: Final = 200
PROPERTY: Final = "mirror workloads"

EVENTS: Final = "two failures raise one event or two"
"""fail_mirror in dm-raid1.c schedules a work item; one that is pending is not queued again."""
HELD: Final = "a held write fails or goes back unharmed"
"""dm_wq_work in dm.c sends down again what is requeued until I/O is blocked, which a suspend
without flush does after presuspend; see `in_order` in playing.py."""

_EVENTS: Final = re.compile(r"events: ours (\d+), the kernel's (\d+)")
_OUTCOME: Final = re.compile(r"outcome of request \d+: ours '(.*)', the kernel's '(.*)'")
_FAILED: Final = os.strerror(5)


def known(found: Sequence[str], last: Step | None) -> str:
    """Return which race explains what differs after the step `last`, "" if none does."""
    events = [match for line in found if (match := _EVENTS.fullmatch(line))]
    if len(found) == 1 and events and abs(int(events[0][1]) - int(events[0][2])) == 1:
        return EVENTS
    outcomes = [match.groups() for line in found if (match := _OUTCOME.fullmatch(line))]
    one_failed = outcomes and all(_FAILED in pair and len({*pair}) == 2 for pair in outcomes)
    if suspends(last) and one_failed:
        return HELD
    return ""


@dataclass
class Count:
    """The workloads of one kernel that were run, and those that were run again.

    `again`: seed, kernel, race and the first difference of each.
    """

    kernel: str
    workloads: int = 0
    again: list[dict[str, Any]] = field(default_factory=list)

    def forgive(self, seed: int, differs: DifferenceError) -> bool:
        """Note a workload that differs; return whether it may be run again."""
        found = differs.what.splitlines()
        race = known(found, differs.steps[-1] if differs.steps else None)
        if not race:
            return False
        first = found[0]
        self.again.append({"seed": seed, "kernel": self.kernel, "race": race, "first": first})
        return True

    @property
    def allowed(self) -> int:
        """How many may be run again: one in RATE, but one."""
        return max(1, self.workloads // RATE)

    def as_property(self) -> dict[str, Any]:
        """Return it as a test's report has it."""
        return asdict(self)


class Ledger:
    """What the closing lines of pytest say, and a file keeps from one run to the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.counts: list[Count] = []

    def add(self, values: dict[str, Any]) -> None:
        """Note what the guest of one kernel reports."""
        count = Count(**values)
        self.counts.append(count)
        if count.again:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(one) + "\n" for one in count.again)

    def lines(self) -> list[str]:
        """Return the closing lines."""
        found = []
        for count in self.counts:
            text = f"{count.kernel}: {len(count.again)} of {count.workloads} workloads ran again"
            found.append(f"{text}, {count.allowed} may")
            found += [f"  seed {one['seed']}: {one['race']}: {one['first']}" for one in count.again]
        if any(count.again for count in self.counts):
            found.append(f"all that ever did are in {self._path}")
        return found
