"""The guide's targets beside the kernel's: the same content and the same status lines.

Which bytes of its COW a snapshot uses, and what a lazy log has on the disk meanwhile, is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dmcopy.io.request import Op
from dmcopy.testing import compare
from dmcopy.testing.compare import Harness
from dmcopy.testing.steps import Access, Burst, Load, Resume, Step, Suspend, Swap, bursts
from tests.kernel.snapshot.ioctls import IoctlMapper
from tests.unit.targets.examples import forgotten, load

pytestmark = pytest.mark.kernel(either=True, cost=6)

SECTORS = 1024


@pytest.fixture(scope="module", autouse=True)
def examples() -> Iterator[None]:
    with forgotten("from_end", "balanced", "lazy_log"):
        yield


@pytest.fixture(autouse=True)
def no_dmsetup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the kernel's devices by ioctl: both engines are looked at after every step."""
    monkeypatch.setattr(compare, "KernelMapper", IoctlMapper)


@dataclass(frozen=True)
class Again:
    """Remove a device, and make it again: it must find everything on its disks."""

    device: str
    table: str

    def do(self, harness: Harness) -> None:
        """See `Step`."""
        harness.remove(self.device)
        harness.create(self.device, self.table)


def snapshot_steps(seed: int, table: str, *, depth: int = 12) -> Iterator[Step]:
    yield from bursts(seed, "base", SECTORS, length=2, depth=16)
    for device, text in (("snap", table), ("origin", f"0 {SECTORS} snapshot-origin @data")):
        yield from (Load(device, text), Resume(device))
    for phase, device in enumerate(("origin", "snap", "origin", "snap")):
        yield from bursts(10 * seed + phase, device, SECTORS, length=4, depth=depth)
        yield Again("snap", table)
    yield from (Suspend("snap"), Load("snap", table), Resume("snap"))  # a handover
    yield from bursts(~seed, "snap", SECTORS, length=3, depth=depth)


@pytest.mark.parametrize("seed", range(2))
def test_a_snapshot_that_allocates_from_the_end(seed: int) -> None:
    load("from_end")
    store, chunk = ("P", "PO")[seed], (1, 8)[seed]
    table = f"0 {SECTORS} snapshot @data @cow {store} {chunk}"
    steps: list[Step] = [Load("base", f"0 {SECTORS} linear @data 0"), Resume("base")]
    steps += snapshot_steps(seed, table)
    disks = {"data": SECTORS, "cow": 2 * SECTORS}
    with compare.pair(disks, instead={"snapshot": "snapshot-end"}) as (kernel, user):
        difference = compare.first_difference(steps, kernel, user, disks=["data"])
        assert difference is None, difference


@pytest.mark.parametrize("store", ["P", "PO"])
def test_one_whose_cow_fills_up(store: str) -> None:
    load("from_end")
    table = f"0 {SECTORS} snapshot @data @cow {store} 8"
    steps: list[Step] = [Load("base", f"0 {SECTORS} linear @data 0"), Resume("base")]
    steps += snapshot_steps(7, table, depth=1)
    disks = {"data": SECTORS, "cow": 300}
    with compare.pair(disks, instead={"snapshot": "snapshot-end"}) as (kernel, user):
        compare.Comparison(kernel, user, disks=["data"]).play(steps)
        assert user.words("snap") == "Invalid"  # by the origin at last, with PO too


@pytest.mark.parametrize("sync", ["", "nosync"])
def test_a_mirror_that_balances_its_reads(sync: str) -> None:
    load("balanced")
    words = f"core {2 if sync else 1} 64 {sync}"
    table = f"0 {SECTORS} mirror {words} 2 @one 0 @two 0 1 handle_errors"
    steps: list[Step] = [Load("m", table), Resume("m")]
    steps += bursts(11, "m", SECTORS, length=8, depth=16, ops={Op.READ: 60, Op.WRITE: 40})
    with compare.pair({"one": SECTORS, "two": SECTORS}, instead={"mirror": "mirror-balanced"}) as (
        kernel,
        user,
    ):
        difference = compare.first_difference(steps, kernel, user)
        assert difference is None, difference


def test_one_whose_first_leg_fails_reads() -> None:
    load("balanced")
    leg = f"0 {SECTORS} linear @one 0"
    steps: list[Step] = [Load("leg", leg), Resume("leg")]
    table = f"0 {SECTORS} mirror core 2 64 nosync 2 @leg 0 @two 0 1 handle_errors"
    steps += [Load("m", table), Resume("m")]
    steps += bursts(12, "m", SECTORS, length=4, depth=8)
    steps.append(Swap("leg", f"0 {SECTORS} error"))
    steps += [Burst((Access(Op.READ, "m", sector, 16),)) for sector in range(0, SECTORS, 128)]
    with compare.pair({"one": SECTORS, "two": SECTORS}, instead={"mirror": "mirror-balanced"}) as (
        kernel,
        user,
    ):
        comparison = compare.Comparison(kernel, user)
        for step in steps:
            comparison.do(step)
        assert " DA " not in user.words("m")
        assert " RA " in user.words("m")
        kernel.close()
        user.close()
        comparison.at_end()


def test_a_mirror_whose_log_is_lazy() -> None:
    load("lazy_log")
    table = f"0 {SECTORS} mirror disk 3 @log 8 nosync 2 @one 0 @two 0"
    steps: list[Step] = [Load("m", table), Resume("m")]
    steps += bursts(13, "m", SECTORS, length=8, depth=16)
    steps.append(Suspend("m"))  # before which the log is written
    with compare.pair(
        {"one": SECTORS, "two": SECTORS, "log": 64}, instead={"mirror": "mirror-lazy"}
    ) as (kernel, user):
        difference = compare.first_difference(steps, kernel, user)
        assert difference is None, difference
