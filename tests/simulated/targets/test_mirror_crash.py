"""Power cuts of mirrors: after every write and flush that reached a disk, and what a resume makes.

The rules: all legs agree on every region that the log calls clean; nothing that was flushed is
lost; nothing is read that was not written; a resume copies the regions that the log calls dirty,
and no other.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dmcopy.io.request import Op
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.targets.base import Bio
from dmcopy.targets.dirty_log import DiskLog
from dmcopy.targets.mirror_legs import Legs
from dmcopy.targets.mirror_set import MirrorSet
from tests.simulated.conftest import Seeds
from tests.simulated.targets.mirror_history import BrokenRuleError, History

HISTORIES = 250
STEPS = 60
RESUMES = 2


def explore(seed: int, steps: int = STEPS) -> int:
    """Play one history, cut the power everywhere, resume on some of it; count the cuts."""
    history = History(seed)
    history.play(steps)
    rng = random.Random(seed)
    chosen = sorted(rng.choices(range(len(history.events)), k=RESUMES))
    count = 0
    for cut in history.cuts():
        history.check(cut)
        count += 1
        if chosen and count > chosen[0] and cut.trusted is not None:
            chosen.pop(0)
            dirty = cut.dirty(history.regions)
            second = history.after(cut, rng)
            second.play(rng.choice((0, 15)), settle=True)
            assert second.recovered == dirty, f"seed {seed}: {second.recovered} copied, not {dirty}"
            for again in second.cuts():
                second.check(again)
                count += 1
            _check_whole(second)
    return count


def _check_whole(history: History) -> None:
    """After all is over the legs are equal, and the log says so."""
    assert len({bytes(disk.content) for disk in history.disks}) == 1, f"seed {history.seed}"
    log = MirrorLog.parse(history.log.content)
    assert (log.nr_regions, list(log.dirty())) == (history.regions, []), f"seed {history.seed}"


def test_no_power_cut_loses_or_invents_anything(seeds: Seeds) -> None:
    explored = [explore(seed) for seed in seeds(HISTORIES)]
    # A run of one seed replays a failure; otherwise the number is what makes the test worth it.
    assert len(explored) == 1 or sum(explored) >= 300 * len(explored)


# Mutants: each breaks one rule of the order of flushes, and has to be caught.


async def _clean_before_the_legs_are_flushed(_self: Legs) -> bool:
    return True


async def _log_never_flushed(_self: DiskLog) -> bool:
    return True


_real_write = MirrorSet._write


async def _write_before_the_log_is_flushed(self: MirrorSet, writes: list[Bio]) -> None:
    log = self._log
    flush = log.flush

    async def later() -> bool:
        return True

    log.flush = later  # type: ignore[assignment,method-assign]
    try:
        await _real_write(self, writes)
    finally:
        log.flush = flush  # type: ignore[method-assign]
    await log.flush()


def _clean_while_writes_are_under_way(self: DiskLog, region: int) -> None:
    del self, region


def _end_with_the_first_leg(self: MirrorSet, bio: Bio) -> None:
    """A write that ends when the first leg has it, flushes included."""
    if bio.op == Op.FLUSH:
        bio.end()
    else:
        _real_write_to_all(self, bio)


_real_write_to_all = MirrorSet._write_to_all

MUTANTS: list[tuple[type, str, Callable[..., object]]] = [
    (Legs, "flush", _clean_before_the_legs_are_flushed),
    (MirrorSet, "_write", _write_before_the_log_is_flushed),
    (DiskLog, "_flush_device", _log_never_flushed),
    (DiskLog, "mark", _clean_while_writes_are_under_way),
    (MirrorSet, "_write_to_all", _end_with_the_first_leg),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant[2].__name__)
def test_a_mutant_is_caught(
    monkeypatch: pytest.MonkeyPatch, mutant: tuple[type, str, Callable[..., object]]
) -> None:
    cls, name, broken = mutant
    monkeypatch.setattr(cls, name, broken)
    with pytest.raises(BrokenRuleError):
        _look_everywhere(40)


def _look_everywhere(histories: int) -> None:
    for seed in range(histories):
        history = History(seed)
        history.play(STEPS)
        for cut in history.cuts():
            history.check(cut)
