"""Ten thousand histories of a client: content, pages, callbacks, outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.simulated.kcopyd.history import play


def test_histories(seeds: Callable[[int], Iterator[int]]) -> None:
    for seed in seeds(10_000):
        play(seed)
