"""The same histories on both engines: what can be seen is the same after each step."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmcopy.testing.compare import DifferenceError
from dmcopy.testing.workload import Workload
from tests.kernel.udevd import without_udevd

from . import history
from .engines import Engine, KernelEngine, UserEngine
from .history import DISKS, History

pytestmark = pytest.mark.kernel(cost=4)

COUNT = {"quick": 3, "long": 500}.get(os.environ.get("DMCOPY_TEST", ""), 20)
"""Histories of either depth."""
BLOCK = 25 if COUNT == 500 else 2
"""Each is a sign of life. The first is played on every kernel, the others on either."""
DISCARDS_BESIDE_ERRORS = not os.uname().release.startswith("6.1.")


@pytest.fixture(scope="module")
def kernel_half(folder: Path) -> Iterator[Engine]:
    """The kernel, with devices that are used for every history."""
    with without_udevd():
        engine = KernelEngine(folder / "kernel", DISKS)
        history.start_up(engine)
        yield engine
        history.shut_down(engine)


@pytest.fixture(scope="module")
def our_half(folder: Path) -> Iterator[Callable[[], Engine]]:
    """Ours, made when it is asked for."""
    made: list[Engine] = []

    @functools.cache
    def make() -> Engine:
        made.append(UserEngine(folder / "user", DISKS))
        history.start_up(made[0])
        return made[0]

    yield make
    for engine in made:
        history.shut_down(engine)


@pytest.fixture(scope="module")
def notes(pytestconfig: pytest.Config) -> dict[str, list[int]]:
    """What ours shows, as the host of this guest has just noted it."""
    in_guest = pytestconfig.getoption("--vm-report")
    return history.noted() if in_guest and "DMCOPY_SEED" not in os.environ else {}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "first",
    [
        0,
        *(
            pytest.param(first, marks=pytest.mark.kernel(either=True))
            for first in range(BLOCK, COUNT, BLOCK)
        ),
    ],
)
@pytest.mark.parametrize("depth", [1, 16])
def test_histories(
    kernel_half: Engine,
    our_half: Callable[[], Engine],
    notes: dict[str, list[int]],
    depth: int,
    first: int,
) -> None:
    """Play a block of seeds, or only $DMCOPY_SEED."""
    forced = os.environ.get("DMCOPY_SEED")
    seeds = [int(forced)] if forced else range(first, min(first + BLOCK, COUNT))
    for seed in seeds:
        make = functools.partial(
            Workload, seed, depth=depth, discards_beside_errors=DISCARDS_BESIDE_ERRORS
        )
        told = f"replay with DMCOPY_SEED={seed}: {make()}"
        known = notes.get(history.key(seed, depth, DISCARDS_BESIDE_ERRORS))
        unlike = ""
        if known is not None:
            unlike = history.first_unlike(History(make(), kernel_half).play(), known)
            if not unlike:
                continue
        both = kernel_half, our_half()
        try:
            history.compare(both, *(History(make(), engine).play() for engine in both))
        except DifferenceError as error:
            pytest.fail(f"{told}: {error}")
        assert not unlike, f"{told}: {unlike} was not what ours shows, and is when it is repeated"


def note_ours(items: list[pytest.Item]) -> None:
    """On the host: note what ours shows in those of `items` that are tests of this file."""
    params = [getattr(item, "callspec").params for item in items]  # noqa: B009
    wanted = [
        (seed, depth, beside)
        for depth, first in sorted({(one["depth"], one["first"]) for one in params})
        for seed in range(first, min(first + BLOCK, COUNT))
        for beside in (False, True)
    ]
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="dmcopy-snapshot-") as folder:
        engine = UserEngine(Path(folder, "user"), DISKS)
        history.start_up(engine)
        history.note(engine, wanted)
        history.shut_down(engine)
