"""The same histories on both engines: what can be seen is the same after each step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.testing.compare import Comparison, DifferenceError, RequestResult, View
from dmcopy.testing.steps import AwaitMerge, Burst, Load, Resume, Step
from dmcopy.testing.workload import NOTHING, SNAPSHOTS, Workload
from tests.kernel.udevd import without_udevd

from .engines import Engine, KernelEngine, UserEngine, pattern

pytestmark = pytest.mark.kernel(cost=12)

COUNT = {"quick": 3, "long": 500}.get(os.environ.get("DMCOPY_TEST", ""), 20)
"""Histories of either depth."""
BLOCK = 25 if COUNT == 500 else 2
"""Each is a sign of life. The first is played on every kernel, the others on either."""
DISCARDS_BESIDE_ERRORS = not os.uname().release.startswith("6.1.")
DISKS = tuple(f"disk{number}" for number in (0, *SNAPSHOTS))
TOPS = ("origin", *(f"snap{number}" for number in SNAPSHOTS))
LOWS = tuple(f"low{number}" for number in (0, *SNAPSHOTS))


@pytest.fixture(scope="module")
def engines(folder: Path) -> Iterator[tuple[Engine, Engine]]:
    """The two engines, with devices that are used for every history."""
    with without_udevd():
        engines = KernelEngine(folder / "kernel", DISKS), UserEngine(folder / "user", DISKS)
        for engine in engines:
            for name in (*LOWS, *TOPS):
                engine.create(name, NOTHING)
        yield engines
        for engine in engines:
            _empty(engine)
            for name in (*TOPS, *LOWS):
                engine.mapper.thaw(name)
                engine.remove(name)
            engine.close()


def _empty(engine: Engine) -> None:
    for name in TOPS:
        engine.mapper.thaw(name)
        engine.swap(name, NOTHING)


class History(Comparison):
    """One history on two engines, which begin with the same content."""

    def __init__(self, workload: Workload, engines: tuple[Engine, Engine]) -> None:
        super().__init__(*engines, patience=0)
        self.engines = engines
        self.workload = workload
        self.merging = False
        self.bursts = 0
        content = pattern(workload.seed, workload.sectors)
        for engine in engines:
            _empty(engine)
            engine.disks.wipe()
            engine.poke("disk0", 0, content)
        self.born = [{name: engine.events(name) for name in TOPS} for engine in engines]

    def after(self, step: Step) -> None:
        """Compare what an observer sees, and now and then everything."""
        match step:
            case Burst():
                self.bursts += 1
            case Load("origin", table) if " snapshot-merge " in table:
                self.merging = True
            case AwaitMerge():
                self.merging = False
        if not self.merging and isinstance(step, Burst | Resume | AwaitMerge):
            self.same("status, table or events", *self.views())
        if self.bursts > 3 or isinstance(step, AwaitMerge):
            self.bursts = 0
            self.at_end()

    def at_end(self) -> None:
        """Compare what all devices hold, and the exception stores."""
        self.same("content", *map(_contents, self.engines))
        if not self.merging:
            self._compare_stores()

    def views(self) -> list[dict[str, View]]:
        """Return what is seen of every device at the top: its events from the beginning on."""
        found = []
        for engine, born in zip(self.engines, self.born, strict=True):
            views = {name: engine.look(name) for name in TOPS}
            found.append(
                {name: one._replace(events=one.events - born[name]) for name, one in views.items()}
            )
        return found

    def _compare_stores(self) -> None:
        """Compare the COWs of all snapshots that are not lost."""
        views, _ = self.views()
        for number in SNAPSHOTS:
            view = views[f"snap{number}"]
            if " snapshot @" not in view.table or view.status == "Invalid":
                continue
            one = self.workload.snapshots.get(number)
            if one is None:
                continue
            disk = f"disk{number}"
            if self.workload.depth == 1:  # from the header to the last chunk that is allocated
                used = view.status.split("/")[0]
                sectors = int(used) if used.isdecimal() else one.sectors
                stores = [engine.peek(disk, 0, sectors) for engine in self.engines]
                self.same_bytes(f"the COW of snap{number}", *stores)
            elif one.store != "N":
                olds = [
                    sorted(old for old, _ in engine.exceptions(disk)) for engine in self.engines
                ]
                self.same(f"the exceptions of snap{number}", *olds)


def _contents(engine: Engine) -> dict[str, list[RequestResult]]:
    """Read every device that is not suspended."""
    if any(engine.mapper.info(name).suspended for name in LOWS):
        return {}
    loaded = [name for name in TOPS if engine.table(name) != NOTHING]
    return engine.contents(loaded)


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
def test_histories(engines: tuple[Engine, Engine], depth: int, first: int) -> None:
    """Play a block of seeds, or only $DMCOPY_SEED."""
    forced = os.environ.get("DMCOPY_SEED")
    seeds = [int(forced)] if forced else range(first, min(first + BLOCK, COUNT))
    for seed in seeds:
        workload = Workload(seed, depth=depth, discards_beside_errors=DISCARDS_BESIDE_ERRORS)
        try:
            History(workload, engines).play(workload.steps())
        except DifferenceError as error:
            pytest.fail(f"{workload}: {error}")
