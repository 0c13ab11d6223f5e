"""The mirrors' differential forgives two races, seldom, and tells of it: no third is hidden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmcopy.io.request import Op
from dmcopy.testing.compare import DifferenceError
from dmcopy.testing.steps import Access, Burst, Cycle, Step, Swap
from tests.kernel.mirror.races import EVENTS, HELD, RATE, Count, Ledger, known

WRITE = Burst((Access(Op.WRITE, "m", 8, 8),))
CYCLE = Cycle("m", flush=False)
RELOAD = Swap("m", "x", flush=False)
ONE_EVENT = "events: ours 4, the kernel's 3"
UNHARMED = "outcome of request 3: ours 'Input/output error', the kernel's 'done'"


@pytest.mark.parametrize(
    ("found", "last", "race"),
    [
        ([ONE_EVENT], WRITE, EVENTS),
        ([UNHARMED], CYCLE, HELD),
        ([UNHARMED, ONE_EVENT, "leg a from sector 8 on"], RELOAD, HELD),
        ([ONE_EVENT, "leg a from sector 8 on"], WRITE, ""),
        (["events: ours 4, the kernel's 2"], WRITE, ""),
        ([UNHARMED], WRITE, ""),
        (["outcome of request 3: ours 'held', the kernel's 'done'"], CYCLE, ""),
        (["outcome of request 3: ours 'ab12', the kernel's 'cd34'"], CYCLE, ""),
        (["log: ours 00 00, the kernel's 01 00"], CYCLE, ""),
        (["the kernel goes on with something"], CYCLE, ""),
    ],
)
def test_what_is_no_known_race_is_not_forgiven(found: list[str], last: Step, race: str) -> None:
    assert known(found, last) == race
    count = Count("6.1", workloads=1)
    assert count.forgive(7, DifferenceError("\n".join(found), {}, [WRITE, last])) == bool(race)
    assert [one["seed"] for one in count.again] == [7] * bool(race)


def test_one_in_two_hundred_may_be_run_again() -> None:
    allowed = {n: Count("6.1", n).allowed for n in (6, RATE, 2 * RATE - 1, 5 * RATE)}
    assert list(allowed.values()) == [1, 1, 1, 5]


def test_the_ledger_keeps_them_and_the_closing_lines_count_them(tmp_path: Path) -> None:
    path = tmp_path / "build" / "differed.jsonl"
    for seed in (3, 5):
        ledger = Ledger(path)
        count = Count("6.12.1", workloads=36)
        count.forgive(seed, DifferenceError(ONE_EVENT, {}, [WRITE]))
        ledger.add(count.as_property())
        ledger.add(Count("6.1.9", workloads=36).as_property())
        assert ledger.lines() == [
            "6.12.1: 1 of 36 workloads ran again, 1 may",
            f"  seed {seed}: {EVENTS}: {ONE_EVENT}",
            "6.1.9: 0 of 36 workloads ran again, 1 may",
            f"all that ever did are in {path}",
        ]
    seen = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(one["seed"], one["kernel"], one["race"]) for one in seen] == [
        *((3, "6.12.1", EVENTS), (5, "6.12.1", EVENTS))
    ]
