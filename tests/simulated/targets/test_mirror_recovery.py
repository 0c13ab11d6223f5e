"""Recovery of several regions at a time ends as recovery of one at a time, as the kernel's, does.

The workloads are those that are compared with the kernel: two engines, each on its own simulated
disks, do the same, and when all is quiet they show the same legs, log, status, events and outcomes.

What hangs on how many copies had begun is left out: from where a default leg has failed and another
has taken over, what is copied from it and what to it differs. And two races have names. RETURNED is
known by what both engines did, and nothing may differ after it but the one write. EVENTS is the
differential's: several at a time may raise one event less, and nothing else differs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import pytest

from dmcopy.io import Reactor
from dmcopy.io.request import Op
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.targets.base import Bio
from dmcopy.targets.mirror_set import Module
from dmcopy.targets.region_hash import RegionHash
from dmcopy.testing.disks import Disks
from dmcopy.testing.mirrors import DISKS, LEGS, SIZES, Heal, MirrorWorkload, fault, fill
from dmcopy.testing.steps import Access, Burst, Cycle, Step, Swap
from tests.kernel.mirror.playing import changes, in_order, suspends
from tests.kernel.mirror.races import EVENTS, known
from tests.kernel.mirror.sides import Look, UserSide, differing_legs
from tests.simulated.conftest import Seeds

WORKLOADS = 16
STEPS = 12
RACES = (454, 1018, 2416, 3395)  # one workload in five hundred

RETURNED: Final = "a held write comes back before the recovery of its region begins, or after"
"""A suspend without flush sends a held write back, and it comes again at the resume, which lets
recovery begin, too. By do_writes in dm-raid1.c it is delayed if its region is being recovered, and
goes to all legs when that is over, if the log can be written; if not, it goes to the default leg
alone, or is held when a leg has failed, and the recovery of the region is given up or waits for it
(dm_rh_mark_nosync and __rh_recovery_prepare in dm-region-hash.c). With one region at a time only
the first that is out of sync is being recovered then; with several, those behind it are, too."""

ENDS: Final = {"WRITE: done", os.strerror(errno.EIO)}
"""What may become of the write, once it is not held any more."""


class MemoryDisks(Disks):
    """Disks that are simulated."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self.found = {f"/dev/{name}": SimulatedDisk(sizes[name], name) for name in sizes}
        self.paths = {name: f"/dev/{name}" for name in sizes}
        self.words = {path: name for name, path in self.paths.items()}

    def poke(self, disk: str, sector: int, data: bytes) -> None:
        """Write to a disk, below everything."""
        found = self.found[self.paths[disk]]
        content = found.content
        content[sector << 9 : (sector << 9) + len(data)] = data
        found.load(content)

    def peek(self, disk: str, sector: int = 0, count: int | None = None) -> bytes:
        """Read a disk, below everything."""
        assert (sector, count) == (0, None)
        return bytes(self.found[self.paths[disk]].content)

    def same(self, disk: str, other: Disks) -> bool:
        return self.peek(disk) == other.peek(disk)


Delays = list[tuple[RegionHash, int]]
"""Where and to which region a write was delayed."""


class SimulatedSide(UserSide):
    """Our engine, on disks in memory."""

    def __init__(self, recovery: Literal["several", "kernel"]) -> None:
        disks = MemoryDisks(DISKS)
        reactor = Reactor(SimulatedBackend(1), stacked=True)
        mapper = UserMapper(reactor, open_device=lambda path, _: disks.found[path])
        super().__init__(disks, mapper)
        mapper.module(Module).recovery = recovery

    @property
    def has_another_default(self) -> bool:
        """Whether another leg than the first of the table is the default one."""
        return self._mirror is not None and self._mirror.legs.default is not next(
            iter(self._mirror.legs)
        )

    @property
    def held_requests(self) -> list[int]:
        """The requests that have not ended."""
        return [number for number, end in enumerate(self.seen().outcomes) if end == "held"]

    def delayed(self, delays: Delays) -> list[int]:
        """Return the regions of the writes that the mirror delayed."""
        hash_ = self._mirror.work.hash if self._mirror else None
        return [region for where, region in delays if where is hash_]

    def without(self, number: int, region: int) -> tuple[Look, list[bytes]]:
        """Return what is seen, and the legs, without a request and what it writes to a region."""
        look = self.seen()
        del look.outcomes[number]
        assert self._mirror is not None
        request, size = self._requests[number], self._mirror.max_io_len
        start = max(request.sector, region * size) << 9
        end = min(request.sector + request.count, (region + 1) * size) << 9
        assert start < end
        legs = [self.peek(leg) for leg in LEGS]
        return look, [leg[:start] + leg[end:] for leg in legs]


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> Delays:
    """Return a list to which each write is added that is delayed by a recovery."""
    found: Delays = []
    original = RegionHash.delay

    def delay(self: RegionHash, number: int, bio: Bio) -> None:
        found.append((self, number))
        original(self, number, bio)

    monkeypatch.setattr(RegionHash, "delay", delay)
    return found


def test_several_at_a_time_end_as_one_at_a_time_does(seeds: Seeds, delays: Delays) -> None:
    compared = [_compare_both(seed, delays) for seed in seeds(WORKLOADS)]
    assert len(compared) == 1 or sum(compared) >= 8 * len(compared)


@pytest.mark.parametrize("seed", RACES)
def test_workloads_that_race_differ_in_nothing_else(seed: int, delays: Delays) -> None:
    assert _compare_both(seed, delays)


class Return(NamedTuple):
    """How a write comes to be held and back, and what then becomes of it, of several and of one."""

    sync: str
    bad: str
    back: tuple[Step, ...]
    ends: tuple[str, str]


BACK: Final = Cycle("m", flush=False)
SWAPPED: Final = "0 128 mirror disk 3 @l 32 sync 3 @c 0 @a 0 @b 0 1 handle_errors"
RETURNS: Final = {
    "a leg good again": Return("sync", "b", (Heal(("b",)), BACK), ("WRITE: done", "held")),
    "a leg bad": Return("nosync", "b", (Swap("m", SWAPPED, flush=False),), ("held", "held")),
    "a log bad": Return("sync", "l", (BACK,), ("held", "WRITE: done")),
}


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize("region", [0, 1, 3])
def test_a_write_that_comes_back_meets_the_recovery_of_its_region_or_comes_before_it(
    name: str, region: int, delays: Delays
) -> None:
    """The race itself: the first region is not open to it, and nothing but the write differs."""
    sync, bad, back, ends = RETURNS[name]
    several, one = both = SimulatedSide("several"), SimulatedSide("kernel")
    for side in both:
        fill(side, 1, alike=False, log=b"")
        side.make(f"0 128 mirror disk 3 @l 32 {sync} 3 @a 0 @b 0 @c 0 1 handle_errors")
        side.settle()
    write = Burst((Access(Op.WRITE, "m", region * 32 + 5, 8, 2),))
    steps: list[Step] = [fault(bad, f"0 {SIZES[bad]} error"), write, *back]
    for step in steps:
        assert _differences(several, one) == []
        held = one.held_requests
        _do(step, both, delays)
    assert (several.delayed(delays), one.delayed(delays)) == ([region], [] if region else [0])
    assert [side.seen().outcomes for side in both] == [[ends[0]], [ends[1 if region else 0]]]
    assert _has_returned(back[-1], held, delays, both) == (region > 0)
    assert bool(_differences(several, one)) == (region > 0)
    assert _left_by_the_race(0, region, both) == []
    _close(both)


def test_failures_that_several_recoveries_find_together_raise_one_event() -> None:
    """Of two legs together, where one at a time finds the first alone in the first region."""
    several, one = both = SimulatedSide("several"), SimulatedSide("kernel")
    for side in both:
        side.make("0 512 mirror disk 3 @l 32 sync 3 @a 0 @b 0 @c 0 1 handle_errors")
        side.settle()
    rest = f"512 {SIZES['b'] - 512} linear @ 512"
    _do(fault("b", "0 512 error", rest), both, [])
    _do(fault("c", "0 32 linear @ 0", "32 480 error", rest), both, [])  # all but the first region
    assert _differences(several, one) == []
    _do(Cycle("m"), both, [])
    assert _is_one_event_less(_differences(several, one), both)
    _close(both)


def _compare_both(seed: int, delays: Delays) -> int:
    """Play one workload on both; return after how many steps they were found the same."""
    workload = MirrorWorkload(seed)
    several, one = both = SimulatedSide("several"), SimulatedSide("kernel")
    done = [f"seed {seed}", f"create {workload.table()}"]
    for side in both:
        workload.fill(side)
        side.make(workload.table(), readonly=workload.readonly)
        side.settle()
    last: Step | None = None
    held: list[int] = []
    for step in _steps(workload, several):
        if any(side.has_another_default for side in both):
            break
        differs = _differences(several, one)
        returned = bool(differs) and _has_returned(last, held, delays, both)
        if returned:
            done.append(f"{Cycle('m')}, for {RETURNED}")
            differs = _left_by_the_race(held[0], several.delayed(delays)[0], both)
        fewer_events = not returned and _is_one_event_less(differs, both)
        assert not differs or fewer_events, "\n".join([*differs, *done])
        if returned or fewer_events:
            break
        done.append(str(step))
        last, held = step, one.held_requests
        _do(step, both, delays)
    _close(both)
    return len(done) - 2


def _differences(several: SimulatedSide, one: SimulatedSide) -> list[str]:
    return several.seen().differs(one.seen()) or differing_legs(several, one)


def _has_returned(
    last: Step | None,
    held: Sequence[int],
    delays: Delays,
    both: tuple[SimulatedSide, SimulatedSide],
) -> bool:
    """Whether RETURNED happened in the step `last`, before which `held` were held.

    That is: there was one write to come back, and of all that was delayed in the step it is the one
    that several recoveries delayed, and one at a time did not.
    """
    several, one = (side.delayed(delays) for side in both)
    came_back = suspends(last) and not last.flush and len(held) == 1
    return came_back and len(several) == 1 and one == []


def _is_one_event_less(differs: Sequence[str], both: tuple[SimulatedSide, SimulatedSide]) -> bool:
    """Whether failures that several recoveries found together raised one event, and not two."""
    several, one = (side.seen().view.events for side in both)
    return known(differs, None) == EVENTS and several < one


def _left_by_the_race(
    number: int, region: int, both: tuple[SimulatedSide, SimulatedSide]
) -> list[str]:
    """Let a suspend with flush fail the write where it is held; return what differs but for it.

    Where one has done the write and the other failed it, what it writes to the region may differ.
    """
    _do(Cycle("m"), both, [])
    ends = [side.seen().outcomes[number] for side in both]
    (several, legs), (one, other_legs) = (side.without(number, region) for side in both)
    found = several.differs(one)
    if not ENDS.issuperset(ends):
        found.append(f"the write that came back: {ends}")
    if legs != other_legs or len({*ends}) == 1:
        found += differing_legs(*both)
    return found


def _do(
    step: Step,
    both: tuple[SimulatedSide, SimulatedSide],
    delays: Delays,
) -> None:
    delays.clear()
    for side in both:
        step.do(side)
        side.settle()


def _close(both: tuple[SimulatedSide, SimulatedSide]) -> None:
    for side in both:
        side.heal()
        side.drop()
        side.mapper.close()
        side.reactor.close()


def _steps(workload: MirrorWorkload, side: SimulatedSide) -> Iterator[Step]:
    for chosen in workload.steps(STEPS):
        if not any(map(side.is_held, changes(chosen))):
            yield from in_order(chosen, side)
    yield Heal(tuple(sorted(side.faulty)))
