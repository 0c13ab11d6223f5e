"""One workload, two engines: the same outcomes, legs, log, status and events when all is quiet."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from dmcopy.mapper.userspace import UserMapper
from dmcopy.testing.compare import DifferenceError
from dmcopy.testing.disks import Disks
from dmcopy.testing.mirrors import DISKS, MirrorWorkload

from .conftest import Pair
from .playing import History, Moment, note, noted, ours
from .races import PROPERTY, Count
from .sides import UserSide

pytestmark = pytest.mark.kernel(cost=7)

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
def test_both_engines_do_the_same(
    pair: Pair, count: Count, batch: int, pytestconfig: pytest.Config
) -> None:
    forced = os.environ.get("DMCOPY_SEED")
    in_guest = pytestconfig.getoption("--vm-report")  # of a host that has just noted ours
    for seed in ([int(forced)] if not batch else []) if forced else seeds_of(batch):
        count.workloads += 1
        try:
            _run(pair, seed, noted(seed) if in_guest and not forced else None)
        except DifferenceError as differs:
            if not count.forgive(seed, differs):
                raise
            _run(pair, seed)


def test_few_workloads_are_run_again(
    count: Count, record_property: Callable[[str, object], None]
) -> None:
    """What is wrong in one run of many, and not in the next, is a race that is not known yet."""
    record_property(PROPERTY, count.as_property())
    assert len(count.again) <= count.allowed, count.again


def seeds_of(batch: int) -> range:
    return range(batch, BATCHES * WORKLOADS, BATCHES)


def _run(pair: Pair, seed: int, moments: Iterable[Moment] | None = None) -> None:
    """Play a workload: the kernel's half alone where it is noted what ours shows."""
    user, kernel = pair
    workload = MirrorWorkload(seed)
    told = f"replay with DMCOPY_SEED={seed}: {workload}"
    workload.fill(kernel)
    kernel.make(workload.table(), readonly=workload.readonly)
    beside = ours(user, workload, STEPS)
    try:
        if moments is None:
            History(kernel, user).play_as(beside)
        else:
            History(kernel).play_as(moments)
    except DifferenceError as error:
        error.add_note(told)
        raise
    finally:
        beside.close()
        kernel.heal()
        kernel.drop()


def note_ours(items: list[pytest.Item]) -> None:
    """On the host: note what ours shows in those of `items` that are tests of this file."""
    batches = sorted({getattr(item, "callspec").params["batch"] for item in items})  # noqa: B009
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="dmcopy-mirror-") as folder,
        Disks(Path(folder, "user"), DISKS) as disks,
        contextlib.closing(UserSide(disks, UserMapper())) as user,
    ):
        note(user, (seed for batch in batches for seed in seeds_of(batch)), STEPS)
