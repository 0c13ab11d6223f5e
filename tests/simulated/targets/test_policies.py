"""Power cuts with the policies of the guide: where a snapshot allocates, when a log writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dmcopy.targets.mirror import Mirror
from dmcopy.targets.snapshot import Snapshot
from tests.simulated.conftest import Seeds
from tests.simulated.targets.snapshots import History
from tests.simulated.targets.test_mirror_crash import explore
from tests.unit.targets.examples import forgotten, load


@pytest.fixture(scope="module", autouse=True)
def examples() -> Iterator[None]:
    with forgotten("from_end", "lazy_log"):
        yield


@pytest.mark.parametrize("tight", [False, True])
def test_chunks_from_the_end_outlive_power_cuts(
    tight: bool, seeds: Seeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Snapshot, "allocation", load("from_end").FromTheEnd)
    for seed in seeds(10):
        assert History(seed, tight=tight).play()


def test_a_lazy_log_loses_nothing_in_power_cuts(
    seeds: Seeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mirror, "disk_log", load("lazy_log").LazyLog)
    for seed in seeds(10):
        assert explore(seed)
