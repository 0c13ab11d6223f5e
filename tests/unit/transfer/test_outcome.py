"""What came of a transfer, as an exit code and as facts."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from dmcopy.errors import ExitCode
from dmcopy.io import Op
from dmcopy.transfer import Transfer, TransferOutcome, events
from dmcopy.transfer.settings import Settings
from dmcopy.transfer.verify import Verified
from tests.unit.transfer.bench import SECTORS, Bench

SETTINGS = Settings("simulated", 8, 64, 512)


def outcome(bench: Bench, verified: Verified | None = None, **how: Any) -> TransferOutcome:
    return TransferOutcome(bench.run(**how), SETTINGS, verified)


def fail(bench: Bench, op: Op, *indices: int, sector: int = 300, count: int = 1) -> None:
    disks = [bench.source, *bench.dests]
    for index in indices:
        disks[index].fail(op, sector, count)


def checked(*, bad: int | None = None, unreadable: int | None = None) -> Verified:
    found = Verified(3)
    found.checked = [SECTORS] * 3
    if bad is not None:
        found.mismatches[bad].add(8, 24)
    if unreadable is not None:
        found.unreadable[unreadable].add(8, 16, errno.EIO)
    return found


def test_zeroes_have_no_source() -> None:
    bench = Bench()
    for disk in bench.dests:
        disk.load(b"-" * (SECTORS << 9))
    facts = outcome(bench, zero=True).as_dict()
    assert (facts["source"], facts["sectors"], facts["ok"]) == (None, SECTORS, True)
    assert [one["sectors_written"] for one in facts["destinations"]] == [SECTORS] * 3
    (started,) = bench.of(events.Started)
    assert (started.source, started.dests) == ("", ("dest0", "dest1", "dest2"))
    assert not any(any(disk.content) for disk in bench.dests)


@pytest.mark.parametrize(
    ("faults", "how", "code"),
    [
        ([], {}, ExitCode.OK),
        ([(Op.READ, 0)], {}, ExitCode.FAILED),  # the rest of the source was not even looked at
        ([(Op.READ, 0)], {"on_error": "skip"}, ExitCode.PARTIAL),
        ([(Op.WRITE, 1)], {}, ExitCode.PARTIAL),
        ([(Op.WRITE, 1)], {"on_error": "skip"}, ExitCode.PARTIAL),
        ([(Op.WRITE, 1, 2)], {}, ExitCode.PARTIAL),
        ([(Op.WRITE, 1, 2, 3)], {}, ExitCode.FAILED),
        ([(Op.WRITE, 1, 2, 3)], {"on_error": "skip"}, ExitCode.PARTIAL),
        ([(Op.FLUSH, 1)], {}, ExitCode.PARTIAL),
        ([(Op.FLUSH, 1, 2, 3)], {}, ExitCode.FAILED),
        ([(Op.FLUSH, 1), (Op.READ, 0)], {"on_error": "skip"}, ExitCode.PARTIAL),
    ],
)
def test_the_exit_code(faults: list[Any], how: dict[str, Any], code: ExitCode) -> None:
    bench = Bench()
    for op, *indices in faults:
        fail(bench, op, *indices)
    found = outcome(bench, **how)
    assert found.exit_code == code
    facts = found.as_dict()
    assert facts["created"] == []
    assert (facts["ok"], facts["exit_code"]) == (code == ExitCode.OK, code)


@pytest.mark.parametrize(
    ("found", "code", "good"),
    [
        (checked(), ExitCode.OK, [True, True, True]),
        (checked(bad=1), ExitCode.MISMATCH, [True, False, True]),
        (checked(unreadable=2), ExitCode.PARTIAL, [True, True, False]),
        (checked(bad=0, unreadable=1), ExitCode.MISMATCH, [False, False, True]),
    ],
)
def test_what_a_verification_makes_of_it(found: Verified, code: ExitCode, good: list[bool]) -> None:
    result = outcome(Bench(), found)
    assert result.exit_code == code
    facts = result.as_dict()["destinations"]
    assert [dest["ok"] for dest in facts] == [dest["verified"] for dest in facts] == good
    for index, dest in enumerate(facts):
        bad = bool(found.mismatches[index])
        assert dest["mismatches"] == ([{"sector": 8, "count": 16}] if bad else [])
        lost = bool(found.unreadable[index])
        assert len(dest["unreadable"]) == lost


@pytest.mark.parametrize("copying", [True, False])
def test_an_interrupt_goes_before_all_else(copying: bool) -> None:
    """Of the copy or of its verification, whatever that has found by then."""
    found = checked(bad=1)
    found.interrupted = not copying

    def end(transfer: Transfer, _: Any) -> None:
        if copying:
            transfer.interrupt()

    result = outcome(Bench(), found, during=end)
    assert result.interrupted
    assert result.exit_code == ExitCode.INTERRUPTED
    assert result.as_dict()["interrupted"]


def test_the_facts_name_sectors_of_the_devices() -> None:
    bench = Bench()
    fail(bench, Op.READ, 0, sector=300, count=2)
    fail(bench, Op.WRITE, 2, sector=100)
    result = outcome(bench, on_error="skip")
    facts = result.as_dict()
    assert facts["source"] == {
        "path": "source",
        "from": 0,
        "count": SECTORS,
        "read_errors": [{"sector": 300, "count": 2, "errno": "EIO"}],
        "direct": True,
        "buffered_because": None,
    }
    dest = facts["destinations"][1]
    assert (dest["ok"], dest["to"], dest["count"]) == (False, 0, SECTORS)
    assert dest["sectors_written"] == SECTORS - 3
    assert (dest["error"], dest["failed_in"]) == (None, None)
    assert dest["failed"] == [{"sector": 100, "count": 1, "errno": "EIO"}]
    assert (facts["sectors"], facts["pages"], facts["piece_sectors"]) == (SECTORS, 512, 64)
    written = sum(each["sectors_written"] for each in facts["destinations"])
    assert facts["bytes_written"] == written << 9
    assert result.rate() == pytest.approx(result.moved() / result.transfer.seconds)


def test_what_an_earlier_run_had_written_is_not_called_moved() -> None:
    result = outcome(Bench())
    result.resumed = 3 * 600
    assert result.moved() == (SECTORS - 600) << 9
    assert result.as_dict()["bytes_written"] == 3 * 40 << 9
