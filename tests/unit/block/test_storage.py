"""Which devices lie over each other: partitions, loop devices, and the tables of mapped ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from dmcopy.block import storage
from dmcopy.block.storage import extents
from dmcopy.table import Table

SIZE = 10000
TABLES = {
    "low": f"0 {SIZE} linear 8:0 100",
    "high": f"0 {SIZE} linear 8:0 {SIZE + 100}",
    "split": "0 1000 linear 8:0 5000\n1000 1000 linear 8:16 0",
    "over": "0 100 linear 253:0 50",
    "slow": f"0 {SIZE} delay 8:0 100 0 8:16 7000 5",
    "bad": f"0 {SIZE} flakey 8:0 100 1 1",
    "dust": f"0 {SIZE} dust 8:0 100 512",
    "secret": f"0 {SIZE} crypt aes-xts-plain64 0 0 8:0 100",
    "pair": f"0 {SIZE} mirror core 2 1024 nosync 2 8:0 100 8:16 0",
    "none": f"0 {SIZE} zero",
    "error": f"0 {SIZE} error",
    "stripes": f"0 {SIZE} striped 2 8 8:0 20000 8:16 20000",
    "others": f"0 {SIZE} striped 2 8 8:0 25000 8:16 25000",
    "same": "0 1600 striped 2 8 8:0 20000 8:16 20000",
    "pool": f"0 {SIZE} thin-pool 253:0 253:1 128 0",
    "thin": f"0 {SIZE} thin 253:14 1",
    "thin2": f"0 {SIZE} thin 253:14 2",
    "origin": f"0 {SIZE} snapshot-origin 253:0",
    "snap": f"0 {SIZE} snapshot 253:0 253:1 P 8",
    "later": f"0 {SIZE} new-target 8:0 100",
}


@pytest.fixture
def where(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Two disks, two partitions, a RAID, a loop device of a partition, and the TABLES."""
    kernel.add("sda", "8:0", sectors=50000)
    kernel.add("sdb", "8:16", sectors=50000)
    kernel.add("sda1", "8:1", disk="sda", start="2048", sectors=1000)
    kernel.add("sda2", "8:2", disk="sda", start="3048", sectors=1000)
    kernel.add("md0", "9:0", sectors=1000)
    kernel.stack("md0", "sda2")
    loop = {"loop__backing_file": f"{kernel.roots.dev}/sda1", "loop__offset": str(100 * 512)}
    kernel.add("loop0", "7:0", sectors=900, **loop)
    numbers = {"sda": (8, 0), "sdb": (8, 16), "sda1": (8, 1), "sda2": (8, 2), "md0": (9, 0)}
    numbers["loop0"] = (7, 0)
    for minor, name in enumerate(TABLES):
        kernel.add(f"dm-{minor}", f"253:{minor}", sectors=SIZE, dm__name=name)
        numbers[name] = (253, minor)
    kernel.stack(f"dm-{len(TABLES) - 1}", "sda")  # by holders the kernel tells of any target

    def table(name: str, _: object) -> Table | None:
        if not name.startswith("dm-"):
            return None
        return Table.read(TABLES[list(TABLES)[int(name.removeprefix("dm-"))]])

    monkeypatch.setattr(storage, "_table", table)

    def find(name: str, start: int = 0, count: int = 100) -> Any:
        identity = ("block", os.makedev(*numbers[name]))
        return extents(identity, start * 512, count * 512, kernel.roots)

    return find


def touch(one: Any, other: Any) -> bool:
    found = {low.touches(high) for low in one for high in other}
    assert found == {high.touches(low) for low in one for high in other}
    return True in found


def test_a_run_of_sectors_is_followed_to_the_disk(where: Callable[..., Any]) -> None:
    def starts(name: str, *span: int) -> list[float]:
        return [found.start / 512 for found in where(name, *span)]

    assert starts("loop0", 5) == [2048 + 100 + 5]
    assert starts("over", 7) == [100 + 50 + 7]
    assert starts("split", 990, 20) == [5990, 0]
    assert starts("slow", 3) == [103, 7003]
    assert starts("pair", 3) == [103, 3]
    for name in ("bad", "dust", "secret"):
        assert starts(name, 3) == [103]
    assert starts("none") == starts("error") == []


@pytest.mark.parametrize(
    ("one", "other", "lie_over_each_other"),
    [
        (("sda", 2000, 48), ("sda1",), False),
        (("sda", 2000, 49), ("sda1",), True),
        (("sda1",), ("sda2",), False),
        (("sda1",), ("loop0",), False),
        (("sda1", 0, 101), ("loop0",), True),
        (("low",), ("high",), False),
        (("low",), ("sda", 0, 100), False),
        (("low",), ("sda", 0, 101), True),
        (("low", 50), ("over",), True),
        (("low", 0, 50), ("over",), False),
        (("split", 900, 200), ("sdb", 99, 1), True),
        (("split", 900, 200), ("sdb", 100), False),
        (("md0",), ("sda2",), True),
        (("md0",), ("sda1",), False),
        (("md0",), ("md0", 100), False),
        (("stripes",), ("others",), False),
        (("stripes",), ("same",), True),
        (("stripes",), ("stripes", 100), False),
        (("stripes",), ("sda", 20000), True),
        (("stripes",), ("sda", 25000), False),
        (("thin",), ("thin2",), False),
        (("thin",), ("pool",), True),
        (("thin",), ("low",), True),
        (("thin",), ("sda", 30000), False),
        (("snap",), ("origin",), False),
        (("snap",), ("low",), True),
        (("origin",), ("sda", 200), True),
        (("later",), ("sda",), True),
        (("later",), ("later", 100), False),
        (("later",), ("sdb",), False),
    ],
)
def test_whether_two_touch(
    where: Callable[..., Any], one: Any, other: Any, lie_over_each_other: bool
) -> None:
    assert touch(where(*one), where(*other)) == lie_over_each_other


def test_a_ring_ends(where: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLES, "low", "0 1000 linear 253:1 0")
    monkeypatch.setitem(TABLES, "high", "0 1000 linear 253:0 0")
    assert len(where("low")) == 1
