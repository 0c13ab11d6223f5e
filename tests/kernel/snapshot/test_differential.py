"""The same histories on both engines: what can be seen is the same after each step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.testing.steps import AwaitMerge, Burst, Load, Resume, Step
from dmcopy.testing.workload import Workload

from .engines import DISKS, KernelEngine, UserEngine
from .player import Player

pytestmark = pytest.mark.kernel

COUNT = {"quick": 3, "long": 500}.get(os.environ.get("DMCOPY_TEST", ""), 20)
"""Histories of either depth."""
BLOCK = 25
DISCARDS_BESIDE_ERRORS = not os.uname().release.startswith("6.1.")


@pytest.fixture(scope="module")
def players(kernel_engine: KernelEngine, folder: Path) -> Iterator[tuple[Player, Player]]:
    """The two engines, with devices that are used for every history."""
    kernel_engine.wipe()
    user_engine = UserEngine(folder / "user")
    players = Player(kernel_engine), Player(user_engine)
    yield players
    for player in players:
        player.close()
    user_engine.close()


class Twins:
    """One history on two engines."""

    def __init__(self, workload: Workload, players: tuple[Player, Player]) -> None:
        self.workload = workload
        self.players = players
        self.steps: list[Step] = []
        self.merging = False
        for player in players:
            player.reset(workload)

    def play(self) -> None:
        """Play it to its end, or to the first difference."""
        bursts = 0
        for step in self.workload.steps():
            self.steps.append(step)
            self.same("the step's result", *(player.do(step) for player in self.players))
            match step:
                case Burst():
                    bursts += 1
                case Load("origin", table) if " snapshot-merge " in table:
                    self.merging = True
                case AwaitMerge():
                    self.merging = False
            if not self.merging and isinstance(step, Burst | Resume | AwaitMerge):
                views = [player.look() for player in self.players]
                self.same("status, table or events", *views)
            if bursts > 3 or isinstance(step, AwaitMerge):
                bursts = 0
                self.compare_contents()
        self.compare_contents()

    def compare_contents(self) -> None:
        """Compare what all devices hold, and the exception stores."""
        self.same("content", *(player.contents() for player in self.players))
        if not self.merging:
            self.compare_stores()

    def compare_stores(self) -> None:
        """Compare the COWs of all snapshots that are not lost."""
        views = self.players[0].look()
        for number in (1, 2, 3):
            view = views[f"snap{number}"]
            if " snapshot @" not in view.table or view.status == "Invalid":
                continue
            one = self.workload.snapshots.get(number)
            if one is None:
                continue
            disk = DISKS[number]
            if self.workload.depth == 1:
                used = view.status.split("/")[0]
                self.same_bytes(number, int(used) if used.isdecimal() else one.sectors)
            elif one.store != "N":
                olds = [
                    sorted(old for old, _ in player.engine.exceptions(disk))
                    for player in self.players
                ]
                self.same(f"the exceptions of snap{number}", *olds)

    def same_bytes(self, number: int, sectors: int) -> None:
        """Compare a COW from the header to the last chunk that is allocated."""
        stores = [player.engine.peek(DISKS[number], 0, sectors) for player in self.players]
        if stores[0] != stores[1]:
            pairs = enumerate(zip(*stores, strict=True))
            place = next(place for place, (one, other) in pairs if one != other)
            near = [store[place & ~511 :][:512] for store in stores]
            self.same(f"byte {place} of the COW of snap{number}", *near)

    def same(self, what: str, kernel: object, user: object) -> None:
        """Fail with the history so far if the two differ."""
        if kernel != user:
            history = "\n  ".join(map(str, self.steps[-60:]))
            pytest.fail(
                f"{self.workload}: {what} differs after step {len(self.steps)}\n"
                f"kernel: {kernel}\nuser:   {user}\nhistory:\n  {history}"
            )


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(0, COUNT, BLOCK))
@pytest.mark.parametrize("depth", [1, 16])
def test_histories(players: tuple[Player, Player], depth: int, first: int) -> None:
    """Play a block of seeds, or only $DMCOPY_SEED."""
    forced = os.environ.get("DMCOPY_SEED")
    seeds = [int(forced)] if forced else range(first, min(first + BLOCK, COUNT))
    for seed in seeds:
        workload = Workload(seed, depth=depth, discards_beside_errors=DISCARDS_BESIDE_ERRORS)
        Twins(workload, players).play()
