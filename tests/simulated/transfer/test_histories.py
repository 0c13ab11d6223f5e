"""Many seeded histories of whole copies: errors, interruptions, power cuts, and resuming."""

from __future__ import annotations

from tests.simulated.conftest import Seeds
from tests.simulated.transfer.history import History


def test_any_history_ends_with_true_copies(seeds: Seeds) -> None:
    for seed in seeds(400):
        History(seed).play()
