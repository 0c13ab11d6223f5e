"""Seeds: every history of a simulation is replayed by one number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

import pytest


class Seeds(Protocol):
    """What the fixture `seeds` returns."""

    def __call__(self, count: int) -> Iterator[int]:
        """Yield seeds."""


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> Iterator[Seeds]:
    """Return `seeds(n)`: n seeds, a tenth with --quick, ten times as many with --long.

    A history that fails says the command that replays it; $DMCOPY_SEED is the only seed then.
    """
    running: list[int] = []

    def each(count: int) -> Iterator[int]:
        if forced := os.environ.get("DMCOPY_SEED"):
            chosen = [int(forced)]
        else:
            factor = {"quick": 0.1, "long": 10}.get(os.environ.get("DMCOPY_TEST", ""), 1)
            chosen = list(range(int(count * factor)))
        for seed in chosen:
            running[:] = [seed]
            yield seed
        running.clear()

    yield each
    if running:
        replay = f"DMCOPY_SEED={running[0]} .venv/bin/python -m pytest '{request.node.nodeid}'"
        print(f"\nseed {running[0]} failed; replay it with:\n  {replay}")
