"""Power cuts over everything that keeps anything on a disk, one history a seed, counted.

    dmcopy explore tests.simulated.power:cut --seeds 0-9999 --out power.jsonl

Each function returns how many power cuts its history had, and raises where one broke a promise.
"""

from __future__ import annotations

import random

from tests.simulated.export.test_volatile import Play
from tests.simulated.targets.snapshots import History as Snapshots
from tests.simulated.targets.test_mirror_crash import explore as explore_mirror
from tests.simulated.transfer.history import History as Copies

Cuts = dict[str, int]


def snapshots(seed: int, *, steps: int = 40) -> Cuts:
    """An origin with snapshots, taken, merged and loaded again, cut at every completion."""
    history = Snapshots(seed)
    history.play(steps)
    return {"cuts": history.cuts, "merges": history.merging is not None}


def full_snapshots(seed: int, *, steps: int = 40) -> Cuts:
    """The same with COWs that are too small."""
    return {"cuts": Snapshots(seed, tight=True).play(steps)}


def switched_snapshots(seed: int, *, steps: int = 40) -> Cuts:
    """The same on disks whose volatile caches are switched off and on; not among `cut`'s."""
    return {"cuts": Snapshots(seed, switching=True).play(steps)}


def mirrors(seed: int, *, steps: int = 60) -> Cuts:
    """Mirrors with faults and a log, cut at every event, and what resumes on some of them."""
    return {"cuts": explore_mirror(seed, steps)}


def copies(seed: int) -> Cuts:
    """A copy that is interrupted and resumed, cut in the middle and behind each run."""
    history = Copies(seed)
    history.play()
    return {"cuts": history.cuts}


def caches(seed: int, *, batches: int = 12) -> Cuts:
    """A disk with a volatile cache and its log, cut behind every batch of requests."""
    play = Play(seed, random.Random(seed).choice((1, 8)))
    with play.reactor:
        for number in range(batches):
            play.batch()
            if number % 2:
                play.finish()
            play.cut(seed + number)
    return {"cuts": batches}


_KINDS = (snapshots, snapshots, mirrors, mirrors, full_snapshots, snapshots, mirrors, mirrors,
          copies, caches)  # fmt: skip


def cut(seed: int) -> Cuts:
    """One history of all of these, by the last digit of the seed."""
    kind = _KINDS[seed % len(_KINDS)]
    found = kind(seed)
    return {**found, f"cuts of {kind.__name__}": found["cuts"]}
