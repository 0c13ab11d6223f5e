"""One workload, two engines: the same outcomes, legs, log, status and events when all is quiet."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from dmcopy.testing.compare import DifferenceError
from dmcopy.testing.mirrors import MirrorWorkload

from .conftest import Pair
from .playing import History
from .races import PROPERTY, Count

pytestmark = pytest.mark.kernel(cost=10)

WORKLOADS = 6  # of each batch: every batch is a sign of life from the guest
BATCHES = {"quick": 1, "long": 84}.get(os.environ.get("DMCOPY_TEST", ""), 6)
ON_EVERY_KERNEL = 1  # of the batches; the others are played on either
STEPS = 12


@pytest.fixture(scope="module")
def count() -> Count:
    """The workloads of this kernel, and those that were run again."""
    return Count(os.uname().release)


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(batch, marks=pytest.mark.kernel(either=batch >= ON_EVERY_KERNEL))
        for batch in range(BATCHES)
    ],
)
def test_both_engines_do_the_same(pair: Pair, count: Count, batch: int) -> None:
    if forced := os.environ.get("DMCOPY_SEED"):
        seeds = [int(forced)] if not batch else []
    else:
        seeds = list(range(batch, BATCHES * WORKLOADS, BATCHES))
    for seed in seeds:
        count.workloads += 1
        try:
            _run(pair, MirrorWorkload(seed))
        except DifferenceError as differs:
            if not count.forgive(seed, differs):
                raise
            _run(pair, MirrorWorkload(seed))


def test_few_workloads_are_run_again(
    count: Count, record_property: Callable[[str, object], None]
) -> None:
    """What is wrong in one run of many, and not in the next, is a race that is not known yet."""
    record_property(PROPERTY, count.as_property())
    assert len(count.again) <= count.allowed, count.again


def _run(pair: Pair, workload: MirrorWorkload) -> None:
    told = f"replay with DMCOPY_SEED={workload.seed}: {workload}"
    for side in pair:
        workload.fill(side)
        side.make(workload.table(), readonly=workload.readonly)
    try:
        History(*pair).play(workload.steps(STEPS))
    except DifferenceError as error:
        error.add_note(told)
        raise
    finally:
        for side in pair:
            side.heal()
            side.drop()
