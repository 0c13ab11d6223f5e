"""One workload, two engines: the same outcomes, legs, log, status and events when all is quiet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from .conftest import Pair
from .playing import do, in_order, written
from .races import PROPERTY, Count, DifferenceError
from .sides import differing_legs, fill
from .workload import Workload

pytestmark = pytest.mark.kernel

WORKLOADS = 6  # of each batch: every batch is a sign of life from the guest
BATCHES = {"quick": 1, "long": 84}.get(os.environ.get("DMCOPY_TEST", ""), 6)
STEPS = 12
QUIET_SECONDS = 20.0


@pytest.fixture(scope="module")
def count() -> Count:
    """The workloads of this kernel, and those that were run again."""
    return Count(os.uname().release)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_both_engines_do_the_same(pair: Pair, count: Count, batch: int) -> None:
    if forced := os.environ.get("DMCOPY_SEED"):
        seeds = [int(forced)] if not batch else []
    else:
        seeds = list(range(batch, BATCHES * WORKLOADS, BATCHES))
    for seed in seeds:
        count.workloads += 1
        try:
            _run(pair, Workload(seed))
        except DifferenceError as differs:
            if not count.forgive(seed, differs):
                raise
            _run(pair, Workload(seed))


def test_few_workloads_are_run_again(
    count: Count, record_property: Callable[[str, object], None]
) -> None:
    """What is wrong in one run of many, and not in the next, is a race that nobody knows yet."""
    record_property(PROPERTY, count.as_property())
    assert len(count.again) <= count.allowed, count.again


def _run(pair: Pair, workload: Workload) -> None:
    user, kernel = pair
    log = workload.first_log()
    first, readonly = workload.table(), workload.readonly
    mode = "read-only " if readonly else ""
    done = [f"replay with DMCOPY_SEED={workload.seed}", f"create {mode}{first}"]
    fill(pair, workload.seed, alike=workload.alike, log=log)
    for side in pair:
        side.create(first, readonly=readonly)
    try:
        _compare(pair, done)
        for chosen in workload.steps(STEPS):
            if any(user.is_held(*place) for place in written(chosen)):
                continue  # which of two writes under way is the last one is open
            for step in in_order(chosen, user):
                done.append(f"{step.what} {step.words}")
                do(user, step)
                user.settle()
                do(kernel, step)
                _compare(pair, done)
    finally:
        for side in pair:
            side.heal()
            side.remove()


def _compare(pair: Pair, done: list[str]) -> None:
    """Wait until the kernel is quiet and shows what our engine shows."""
    user, kernel = pair
    user.settle()
    ours = user.look()
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        quiet = kernel.is_quiet()
        differs = ours.differs(kernel.look()) or differing_legs(user, kernel)
        if (quiet and not differs) or time.monotonic() > deadline:
            break
        kernel.step()
    if differs or not quiet:
        raise DifferenceError(differs or ["the kernel goes on with something"], done)
