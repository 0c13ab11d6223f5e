"""Recovery of several regions at a time ends as recovery of one at a time, as the kernel's, does.

The workloads are those that are compared with the kernel: two engines, each on its own simulated
disks, do the same, and when all is quiet they show the same legs, log, status, events and outcomes.

What hangs on how many copies had begun is left out: from where a default leg has failed and another
has taken over, what is copied from it and what to it differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from dmcopy.block.loop import LoopDevice
from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.targets.mirror_set import Module
from tests.kernel.mirror.playing import do, in_order, written
from tests.kernel.mirror.sides import DISKS, UserSide, differing_legs, fill, sectors
from tests.kernel.mirror.workload import Step, Workload
from tests.simulated.conftest import Seeds

WORKLOADS = 16
STEPS = 12


class SimulatedSide(UserSide):
    """Our engine, on disks in memory."""

    def __init__(self, recovery: Literal["several", "kernel"]) -> None:
        self.disks = {disk: SimulatedDisk(sectors(disk), disk) for disk in DISKS}
        self.loops = {disk: LoopDevice(f"/dev/{disk}", "") for disk in DISKS}
        self._faulty = set()
        self.reactor = Reactor(SimulatedBackend(1), stacked=True)
        self.mapper = UserMapper(self.reactor, open_device=self._open_disk)
        self.mapper.module(Module).recovery = recovery
        self.reactor.on_exception = self.unexpected.append
        self.open()

    def _open_disk(self, path: str, write: bool) -> SimulatedDisk:
        del write
        return self.disks[path[-1]]

    def poke(self, disk: str, data: bytes, offset: int = 0) -> None:
        """Write to a disk, below everything."""
        content = self.disks[disk].content
        content[offset : offset + len(data)] = data
        self.disks[disk].load(content)

    def peek(self, disk: str) -> bytes:
        """Read a disk, below everything."""
        return bytes(self.disks[disk].content)

    @property
    def has_another_default(self) -> bool:
        """Whether another leg than the first of the table is the default one."""
        return self._mirror is not None and self._mirror.legs.default is not next(
            iter(self._mirror.legs)
        )


def test_several_at_a_time_end_as_one_at_a_time_does(seeds: Seeds) -> None:
    compared = [_compare_both(seed) for seed in seeds(WORKLOADS)]
    assert len(compared) == 1 or sum(compared) >= 8 * len(compared)


def _compare_both(seed: int) -> int:
    """Play one workload on both; return after how many steps they were found the same."""
    workload = Workload(seed)
    several, one = both = SimulatedSide("several"), SimulatedSide("kernel")
    fill(both, seed, alike=workload.alike, log=workload.first_log())
    done = [f"seed {seed}", f"create {workload.table()}"]
    for side in both:
        side.create(workload.table(), readonly=workload.readonly)
        side.settle()
    for step in _steps(workload, several):
        if any(side.has_another_default for side in both):
            break
        differs = several.look().differs(one.look()) or differing_legs(several, one)
        assert not differs, "\n".join([*differs, *done])
        done.append(f"{step.what} {step.words}")
        for side in both:
            do(side, step)
            side.settle()
    for side in both:
        side.heal()
        side.remove()
        side.mapper.close()
        side.reactor.close()
    return len(done) - 2


def _steps(workload: Workload, side: SimulatedSide) -> Iterator[Step]:
    for chosen in workload.steps(STEPS):
        if not any(side.is_held(*place) for place in written(chosen)):
            yield from in_order(chosen, side)
    yield Step("heal")
