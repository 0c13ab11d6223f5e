"""What a bench run yields, and the statistics on it. Pure: nothing here measures anything.

Machines drift: the same command can be a third slower a minute later. So contenders run in
interleaved rounds, a figure is a median with its range, and two contenders are compared within
each round: a ratio is the median of the rounds' ratios, never a ratio of two distant averages.

One contender runs twice in every round. What its two runs differ by is not the contenders' doing:
from it comes how far off a ratio may be, and whether anything can be judged by it.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

TWIN: Final = ", again"
"""Behind the name of the contender that runs twice."""
BUSY: Final = 0.1
"""Where a ratio may be further off than this, nothing is judged by it."""
_ERROR_OF_MEDIAN: Final = 1.25 * 1.48
"""Times the median deviation over the root of the rounds: the standard error of a median."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What a table's columns count: `value` in the first, `cpu` in the two CPU columns."""

    value: str
    cpu: str = ""
    digits: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contender: the value in the table's unit, and CPU time per piece of work.

    `cpu` is the command's own (user and system, children too); `machine` is all that the machine
    was busy with meanwhile, which holds kernel threads, and other people's work.
    """

    value: float
    cpu: float | None = None
    machine: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the range around it."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return median and range of `values`, or None when there are none."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values))


class Metric(enum.StrEnum):
    """Which figure of a run a target is about."""

    VALUE = "value"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Target:
    """A figure to reach: `ours`, divided by the best of `against` unless that is empty.

    `at_most` turns the comparison round, for figures that should be small.
    """

    text: str
    ours: str
    limit: float
    against: tuple[str, ...] = ()
    metric: Metric = Metric.VALUE
    at_most: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target beside what was measured; `figure` is None when it could not be measured.

    `busy`: others used the machine to such a degree that two equal runs were not equally fast.
    """

    target: Target
    figure: float | None
    against: str = ""
    busy: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None when there is nothing to judge by."""
        if self.figure is None or self.busy:
            return None
        if self.target.at_most:
            return self.figure <= self.target.limit
        return self.figure >= self.target.limit


@dataclass(slots=True)
class Table:
    """The runs of one table: for each contender one entry a round, None where it failed."""

    name: str
    title: str
    unit: Unit
    targets: tuple[Target, ...] = ()
    rounds: dict[str, list[Run | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def values(self, name: str, metric: Metric = Metric.VALUE) -> list[float]:
        """Return one contender's figures, of the rounds in which it has one."""
        return [figure for figure in self._figures(name, metric) if figure is not None]

    def ratio(self, ours: str, theirs: str, metric: Metric = Metric.VALUE) -> float | None:
        """Return the median over the rounds of ours divided by theirs, or None without a pair."""
        ratios = self.ratios(ours, theirs, metric)
        return statistics.median(ratios) if ratios else None

    def ratios(self, ours: str, theirs: str, metric: Metric = Metric.VALUE) -> list[float]:
        """Return ours divided by theirs, of the rounds in which both have a figure."""
        pairs = zip(self._figures(ours, metric), self._figures(theirs, metric), strict=False)
        return [ours / theirs for ours, theirs in pairs if ours is not None and theirs]

    @property
    def off(self) -> float | None:
        """By which part a ratio of this table may be off, judged by the runs of the twins.

        None where no contender ran twice.
        """
        twin = next((name for name in self.rounds if name.endswith(TWIN)), None)
        if twin is None:
            return None
        apart = [math.log(one) for one in self.ratios(twin, twin.removesuffix(TWIN)) if one > 0]
        if not apart:
            return None
        deviation = statistics.median(map(abs, apart))
        error = _ERROR_OF_MEDIAN * deviation / math.sqrt(len(apart))
        return math.expm1(max(error, abs(statistics.median(apart))))

    def verdicts(self) -> list[Verdict]:
        """Judge every target of this table."""
        return [self._judge(target) for target in self.targets]

    def _judge(self, target: Target) -> Verdict:
        if not target.against:
            ours = spread(self.values(target.ours, target.metric))
            return Verdict(target, ours.median if ours else None)
        medians = {
            name: statistics.median(values)
            for name in target.against
            if (values := self.values(name, target.metric))
        }
        if not medians:
            return Verdict(target, None)
        best = (min if target.at_most else max)(medians, key=lambda name: medians[name])
        busy = (self.off or 0.0) > BUSY
        return Verdict(target, self.ratio(target.ours, best, target.metric), best, busy)

    def _figures(self, name: str, metric: Metric) -> list[float | None]:
        runs = self.rounds.get(name, [])
        return [getattr(run, metric.value) if run is not None else None for run in runs]


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return `names` starting `turn` places later, so that no one always runs first."""
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]


def missed(tables: Sequence[Table]) -> list[Verdict]:
    """Return every target that was measured and not reached."""
    return [verdict for table in tables for verdict in table.verdicts() if verdict.reached is False]


def medians(table: Table) -> Mapping[str, float]:
    """Return each contender's median value; contenders that never finished are not in it."""
    spreads = {name: spread(table.values(name)) for name in table.rounds}
    return {name: found.median for name, found in spreads.items() if found is not None}
