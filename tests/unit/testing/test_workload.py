"""The histories that two engines are compared by."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from dmcopy.io.request import Op
from dmcopy.table import Table
from dmcopy.testing.steps import AwaitMerge, Burst, Load, Resume, Suspend
from dmcopy.testing.workload import DISK_SECTORS, Workload


@pytest.mark.parametrize("depth", [1, 16])
def test_a_seed_is_a_history(depth: int) -> None:
    first = list(Workload(3, depth=depth).steps())
    assert list(Workload(3, depth=depth).steps()) == first
    assert list(Workload(4, depth=depth).steps()) != first


@pytest.mark.parametrize("depth", [1, 16])
def test_what_every_history_keeps_to(depth: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        workload = Workload(seed, depth=depth)
        suspended: set[str] = set()
        readonly: set[str] = set()
        for step in workload.steps():
            match step:
                case Load(device, table, is_readonly):
                    assert Table.parse(table).length <= DISK_SECTORS
                    (readonly.add if is_readonly else readonly.discard)(device)
                    seen[table.split()[2]] += 1
                case Suspend(device):
                    suspended.add(device)
                case Resume(device):
                    suspended.remove(device)
                case AwaitMerge():
                    assert not suspended
                case Burst(accesses):
                    assert 1 <= len(accesses) <= depth
                    seen.update(access.op.name for access in accesses)
                    for one in accesses:
                        assert one.device not in suspended
                        assert one.device not in readonly or one.op != Op.DISCARD
                        seen["refused"] += one.device in readonly and one.op == Op.WRITE
                        assert 0 <= one.sector < one.sector + one.count <= workload.sectors or (
                            one.op == Op.FLUSH
                        )
                        if one.op == Op.WRITE:
                            assert len(one.data) == one.count * 512
                    for one, other in combinations(accesses, 2):
                        assert one.device != other.device or (
                            one.sector + one.count <= other.sector
                            or other.sector + other.count <= one.sector
                        )
        assert not suspended
    assert {"WRITE", "READ", "FLUSH", "DISCARD", "snapshot", "snapshot-merge"} <= set(seen)
    assert seen["refused"] > 10


@pytest.mark.parametrize("beside", [False, True])
def test_discards_beside_errors_are_left_out_when_asked_for(beside: bool) -> None:
    found = 0
    for seed in range(200):
        failing = False
        for step in Workload(seed, discards_beside_errors=beside).steps():
            match step:
                case Load(device, table) if device.startswith("low"):
                    failing = " error" in table
                case Burst(accesses) if failing:
                    found += sum(access.op == Op.DISCARD for access in accesses)
    assert bool(found) is beside
