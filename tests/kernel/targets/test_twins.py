"""One table, two engines: the same outcomes, content, status lines and table lines."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dmcopy.block import tools
from dmcopy.io.request import Op
from dmcopy.testing.compare import Comparison, has_ended
from dmcopy.testing.steps import Access, Burst

from .conftest import Twins, content, settle, step

pytestmark = pytest.mark.kernel

SIZE = 96
FLAKEY = (
    "0",
    "1 drop_writes",
    "1 error_writes",
    "5 corrupt_bio_byte 600 w 77 0",
    "5 corrupt_bio_byte 2 W 0 131072",  # REQ_FUA
    "5 corrupt_bio_byte 8000 w 1 1",
)
NEW_FLAKEY = (
    "5 corrupt_bio_byte 600 r 77 0",
    "6 drop_writes corrupt_bio_byte 3 r 255 0",
    "1 error_reads",
    "2 error_reads drop_writes",
    "2 random_read_corrupt 0",
    "3 random_write_corrupt 0 error_writes",
)
Operation = Sequence[object]


def table(*lines: str) -> str:
    """Return a table of lines of SIZE sectors, a part of disk A for each at {}."""
    return "\n".join(
        f"{number * SIZE} {SIZE} {line.format(number * SIZE)}" for number, line in enumerate(lines)
    )


def operations(*lines: str) -> list[Operation]:
    """Return what is done to such a table: on every line all, and across lines."""
    found: list[Operation] = []
    for start in range(0, len(lines) * SIZE, SIZE):
        found += [("read", start, 8), ("write", start, 8), ("write", start + 13, 9)]
        found += [("fua", start + 24, 3), ("discard", start + 40, 16), ("zero", start + 70, 9)]
        found += [("read", start, SIZE)]
    total = len(lines) * SIZE
    found += [("message", "nonsense"), ("flush",), ("write", 30, total - 60), ("read", 0, total)]
    return found


def compare(twins: Twins, *lines: str, without: Sequence[str] = ()) -> None:
    done = [one for one in operations(*lines) if one[0] not in without]
    kernels, ours = twins.run(table(*lines), done)
    comparison = Comparison(twins.kernel, twins.user)
    for operation, *outcomes in zip(done, kernels.outcomes, ours.outcomes, strict=True):
        made = step(*operation)
        comparison.steps.append(made)
        accesses = made.accesses if isinstance(made, Burst) else ()
        comparison.same_results("the step's result", accesses, *outcomes)
    comparison.same("status", kernels.status, ours.status)
    comparison.same("table", kernels.table, ours.table)
    for name, data in kernels.disks.items():
        comparison.same_bytes(f"disk {name}", data, ours.disks[name])


def test_healthy_targets(twins: Twins) -> None:
    compare(
        twins,
        "linear A 24",
        "striped 2 8 A 600 B 64",
        "striped 3 16 A 200 B 200 C 16",
        "delay A 700 0",
        "delay A 800 20",
        "delay A 900 1 B 900 10",
        "delay A 1000 0 B 1000 1 C 1000 60",
        "flakey A 1100 100000 0 1 drop_writes",
    )


@pytest.mark.parametrize(
    "target",
    ["linear A 24", "striped 2 8 A 600 B 64", "delay A 0 0", "flakey A 0 9 0", "log-writes A B"],
)
def test_read_only_tables(twins: Twins, target: str) -> None:
    """Nothing from outside gets in. A log of writes has its head and its end all the same."""
    done = [("read", 0, 8), ("write", 0, 8), ("fua", 8, 8), ("flush",), ("read", 0, SIZE)]
    kernels, ours = twins.run(f"0 {SIZE} {target}", done, readonly=True)
    assert ours == kernels
    assert [str(one) for one in ours.outcomes].count("[WRITE: EPERM]") == 2


def test_zero_and_error(twins: Twins, is_new: bool) -> None:
    """A device of which a part takes no discards takes none: zero and error of 6.1."""
    compare(twins, "linear A 0", "zero", "error", without=() if is_new else ("discard",))


def test_flakey(twins: Twins, is_new: bool) -> None:
    """Each feature. 6.1 corrupts no reads, though it says so, and no pages of zeroes."""
    features = FLAKEY + NEW_FLAKEY if is_new else FLAKEY
    lines = [f"flakey A {{}} 0 100000 {words}" for words in features]
    compare(twins, *lines, without=() if is_new else ("zero",))


def test_random_corruption(twins: Twins, is_new: bool) -> None:
    if not is_new:
        pytest.skip("this kernel's flakey corrupts nothing at random")
    words = "4 random_read_corrupt 1000000000 random_write_corrupt 1000000000"
    steps: list[Operation] = [("write", 8, 8), *[("read", 8, 8)] * 20]
    for run in twins.run(f"0 64 flakey A 0 0 100000 {words}", steps):
        written = run.disks["A"][8 << 9 : 16 << 9]
        assert distance(written, content(8, 8)) <= 1
        distances = [
            distance(result.data, written)
            for outcome in run.outcomes
            if isinstance(outcome, list)
            for result in outcome
            if result.op == "READ"
        ]
        assert len(distances) == 20
        assert set(distances) <= {0, 1}
        assert sum(distances) > 10


def distance(one: bytes, other: bytes) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def test_delayed_bios_are_counted_and_go_at_a_suspend(twins: Twins) -> None:
    text = "0 64 delay A 0 0 B 0 100000 C 0 100000"  # no delay for reads: udev must not wait
    accesses = [
        Access(op, "dev", 0, 0 if op == Op.FLUSH else 8) for op in (Op.WRITE, Op.FLUSH, Op.DISCARD)
    ]
    for side in (twins.user, twins.kernel):
        with twins.running(side, text):
            begun = [side.start(access) for access in accesses]
            assert settle(side, "0 64 delay 0 2 1") == "0 64 delay 0 2 1"
            assert not any(map(has_ended, begun))
            side.suspend("dev")
            side.wait(lambda: all(map(has_ended, begun)), "the delayed bios")  # noqa: B023
            assert side.status("dev") == "0 64 delay 0 0 0"
            side.resume("dev")
            assert not any(io.error for io in begun)


def test_versions(twins: Twins) -> None:
    """Ours are those of 6.12, of which 6.1 has three that are older."""
    for module in ("dm-delay", "dm-flakey"):  # a kernel tells of those alone that it has loaded
        tools.run(["modprobe", module], timeout=60)
    theirs, ours = twins.kernel.mapper.targets(), twins.user.mapper.targets()
    shared = theirs.keys() & ours.keys()
    assert {"linear", "striped", "delay", "flakey"} <= shared
    assert all(ours[name] >= theirs[name] for name in shared)
