"""Two engines are played the same steps, and told apart where they differ first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from dmcopy.io.request import Op
from dmcopy.mapper.engines import EngineName
from dmcopy.testing.compare import Comparison, DifferenceError, first_difference, pair
from dmcopy.testing.disks import Disks
from dmcopy.testing.mirrors import DISKS, MirrorWorkload
from dmcopy.testing.steps import (
    Access,
    Burst,
    Load,
    Message,
    Resume,
    Step,
    Suspend,
    Wipe,
    bursts,
)
from dmcopy.testing.workload import Workload

USER: tuple[EngineName, EngineName] = ("user", "user")
SECTORS = 512
BOTH: Mapping[Op, int] = {Op.WRITE: 4, Op.READ: 2, Op.FLUSH: 1, Op.DISCARD: 1, Op.WRITE_ZEROES: 1}


def started(table: str, name: str = "dev") -> list[Step]:
    return [Load(name, table), Resume(name)]


@pytest.mark.parametrize("depth", [1, 8])
def test_the_same_targets_do_the_same(depth: int) -> None:
    steps: list[Step] = [
        *started(f"0 {SECTORS} striped 2 16 @a 0 @b 64", "low"),
        *started(f"0 {SECTORS} linear @low 0"),
        *bursts(3, "dev", SECTORS, depth=depth, ops=BOTH),
        Suspend("dev"),
        Load("dev", f"0 {SECTORS // 2} linear @low 0", readonly=True),
        Resume("dev"),
        *bursts(4, "dev", SECTORS // 2, length=5, ops=BOTH),
        Wipe("a"),
    ]
    with pair({"a": SECTORS, "b": SECTORS}, engines=USER) as (one, other):
        assert first_difference(steps, one, other) is None
        assert one.disks.peek("a") == other.disks.peek("a") != bytes(SECTORS << 9)
        assert one.look("dev").table == f"0 {SECTORS // 2} linear @low 0"
        assert one.table("low") == f"0 {SECTORS} striped 2 16 @a 0 @b 64"
        assert one.look("dev").readonly
        assert one.looks() == {name: one.look(name) for name in ("low", "dev")}


def test_the_first_step_with_another_result_is_told() -> None:
    steps = [*started("0 64 linear @a 0\n64 64 zero"), *bursts(1, "dev", 128, depth=4)]
    with pair({"a": 64}, engines=USER, instead={"zero": "error"}) as sides:
        difference = first_difference(steps, *sides)
    assert difference is not None
    assert difference.what == "the step's result"
    assert isinstance(difference.steps[-1], Burst)
    assert "EIO" in str(difference.found["second"])
    assert "EIO" not in str(difference.found["first"])
    assert str(difference.steps[-1]) in str(difference)


@pytest.mark.parametrize("reads", [True, False])
def test_the_sector_that_is_read_otherwise_is_told(reads: bool) -> None:
    """In a table of two lines it says which of them is wrong."""
    steps: list[Step] = started("0 32 linear @a 0\n32 32 linear @b 0")
    steps += [Burst((Access(Op.READ, "dev", 0, 8), Access(Op.READ, "dev", 24, 40)))] * reads
    with pair({"a": 64, "b": 64}, engines=USER) as (one, other):
        other.disks.poke("b", 3, b"x" * 512)
        difference = first_difference(steps, one, other)
    assert difference is not None
    what = "the step's result" if reads else "content"
    assert difference.what == f"{what}: dev, from byte 0 of sector 35,"
    assert str(difference.found["second"]).startswith("78787878")


def test_a_table_that_one_refuses() -> None:
    with pair({"a": 64}, engines=USER, instead={"linear": "lineal"}) as sides:
        difference = first_difference(started("0 64 linear @a 0"), *sides)
    assert difference is not None
    assert difference.found == {"first": None, "second": "EINVAL"}


def test_disks_that_differ_differ_by_sector_and_byte() -> None:
    with pair({"a": 64}, engines=USER) as (one, other):
        other.disks.poke("a", 33, b"ab" * 256)
        one.disks.poke("a", 33, b"ac" * 256)
        difference = first_difference(started("0 8 zero"), one, other)
    assert difference is not None
    assert difference.what == "disk a, from byte 1 of sector 33,"
    assert str(difference.found["first"]).startswith("61636163")


def test_the_steps_names_are_seen_whatever_the_engine_has() -> None:
    """A target that stands for another has its name in lines, and in tables its own."""
    steps = started("0 64 zero")
    with pair({"zero": 64}, engines=USER, instead={"zero": "error"}) as (one, other):
        difference = first_difference(steps, one, other)
        assert difference is not None
        assert difference.what == "content"
        assert str(other.mapper.table("dev")) == "0 64 error"
        assert other.table("dev") == "0 64 zero"
        assert other.parse("0 8 linear @zero 0").devices == (other.disks.paths["zero"],)


def test_messages_and_events_are_compared() -> None:
    steps = [*started("0 64 linear @a 0"), Message("dev", ("hello",))]
    with pair({"a": 64}, engines=USER) as (one, other):
        assert first_difference(steps, one, other) is None
        assert one.do(Message("dev", ("hello",))) == "EINVAL"


def test_what_comes_late_is_waited_for() -> None:
    with pair({}, engines=USER) as (one, other):
        late = iter(range(100))
        Comparison(one, other).agree("x", lambda side: side is one or next(late) > 3)
        assert next(late) == 5
        hurried = Comparison(one, other, patience=0)
        with pytest.raises(DifferenceError, match="x differs after step 0"):
            hurried.agree("x", lambda side: side is one)


def test_histories_of_snapshots() -> None:
    disks = {f"disk{number}": 16384 for number in range(4)}
    for seed in range(3):
        with pair(disks, engines=USER) as (one, other):
            steps = [Load(name, "0 8 error") for name in ("low0", "low1", "low2", "low3")]
            assert first_difference([*steps, *Workload(seed).steps()], one, other) is None


def test_mirrors_without_faults() -> None:
    for seed in range(4):
        workload = MirrorWorkload(seed, faults=False)
        with pair(DISKS, engines=USER) as both:
            for one in both:
                workload.fill(one)
            steps = [*workload.start(), *workload.steps(8)]
            assert first_difference(steps, *both) is None, workload


def test_a_read_only_device_is_asked() -> None:
    write = Access(Op.WRITE, "dev", 0, 8, 1)
    with pair({"a": 64}, engines=USER) as (one, _):
        one.create("dev", "0 64 linear @a 0", readonly=True)
        assert str(one.perform(write, Access(Op.FLUSH, "dev"))) == "[WRITE: EPERM, FLUSH: done]"


def test_disks_leave_nothing(tmp_path: Path) -> None:
    with Disks(tmp_path / "disks", {"a": 8, "b": 16}) as disks:
        disks.poke("b", 3, b"x" * 512)
        assert disks.peek("b", 2, 2) == bytes(512) + b"x" * 512
        disks.wipe()
        assert disks.peek("b") == bytes(16 * 512)
    assert list(tmp_path.iterdir()) == []


def test_disks_are_compared_where_they_lie(tmp_path: Path) -> None:
    with Disks(tmp_path / "one", {"a": 16}) as one, Disks(tmp_path / "two", {"a": 16}) as two:
        assert one.same("a", two)
        one.poke("a", 15, b"x" * 512)
        assert not one.same("a", two)
        two.poke("a", 15, b"x" * 512)
        assert one.same("a", two)
        two.wipe()
        assert not one.same("a", two)
    assert list(tmp_path.iterdir()) == []


def test_a_burst_is_the_same_for_the_same_seed() -> None:
    first = list(bursts(5, "dev", 100, depth=8))
    assert list(bursts(5, "dev", 100, depth=8)) == first
    assert list(bursts(6, "dev", 100, depth=8)) != first
    for burst in first:
        for number, access in enumerate(burst.accesses):
            assert access.sector + access.count <= 100
            assert not any(access.overlaps(other) for other in burst.accesses[:number])


def test_sides_are_removed_with_what_was_left_suspended() -> None:
    with pair({"a": 64}, engines=USER) as (one, _):
        one.create("low", "0 64 linear @a 0")
        one.create("dev", "0 64 linear @low 0")
        one.suspend("dev")
        assert one.devices == ["low", "dev"]
    assert one.mapper.ls() == []
