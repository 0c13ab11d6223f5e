"""Recovery of several regions at a time ends as recovery of one at a time, as the kernel's, does.

The workloads are those that are compared with the kernel: two engines, each on its own simulated
disks, do the same, and when all is quiet they show the same legs, log, status, events and outcomes.

What hangs on how many copies had begun is left out: from where a default leg has failed and another
has taken over, what is copied from it and what to it differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.targets.mirror_set import Module
from dmcopy.testing.disks import Disks
from dmcopy.testing.mirrors import DISKS, Heal, MirrorWorkload
from dmcopy.testing.steps import Step
from tests.kernel.mirror.playing import changes, in_order
from tests.kernel.mirror.sides import UserSide, differing_legs
from tests.simulated.conftest import Seeds

WORKLOADS = 16
STEPS = 12


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


def test_several_at_a_time_end_as_one_at_a_time_does(seeds: Seeds) -> None:
    compared = [_compare_both(seed) for seed in seeds(WORKLOADS)]
    assert len(compared) == 1 or sum(compared) >= 8 * len(compared)


def _compare_both(seed: int) -> int:
    """Play one workload on both; return after how many steps they were found the same."""
    workload = MirrorWorkload(seed)
    several, one = both = SimulatedSide("several"), SimulatedSide("kernel")
    done = [f"seed {seed}", f"create {workload.table()}"]
    for side in both:
        workload.fill(side)
        side.make(workload.table(), readonly=workload.readonly)
        side.settle()
    for step in _steps(workload, several):
        if any(side.has_another_default for side in both):
            break
        differs = several.seen().differs(one.seen()) or differing_legs(several, one)
        assert not differs, "\n".join([*differs, *done])
        done.append(str(step))
        for side in both:
            step.do(side)
            side.settle()
    for side in both:
        side.heal()
        side.drop()
        side.mapper.close()
        side.reactor.close()
    return len(done) - 2


def _steps(workload: MirrorWorkload, side: SimulatedSide) -> Iterator[Step]:
    for chosen in workload.steps(STEPS):
        if not any(map(side.is_held, changes(chosen))):
            yield from in_order(chosen, side)
    yield Heal(tuple(sorted(side.faulty)))
