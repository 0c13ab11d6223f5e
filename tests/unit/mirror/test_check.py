"""Comparing legs: in memory, on files, and as `dmcopy mirror check` and `mirror-log` say it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli.main import main
from dmcopy.cli.mirror_check import configure_check, exit_code, run_check
from dmcopy.cli.parser import Parser
from dmcopy.errors import ExitCode, UsageError
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import IoRegion
from dmcopy.io.request import Op
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mirror.check import MirrorReport, compare, guess_region_size
from dmcopy.ondisk.bitset import Bitset
from dmcopy.ondisk.mirror_log import MirrorLog

SECTORS = 10000  # several pieces, and a short last region


def _log(regions: int, dirty: set[int]) -> MirrorLog:
    bits = Bitset(0).resized(regions, True)
    for region in dirty:
        bits[region] = False
    return MirrorLog(bits)


def _disks(count: int) -> list[SimulatedDisk]:
    content = random.Random(1).randbytes(SECTORS * 512)
    disks = [SimulatedDisk(SECTORS, name) for name in "abcdefghi"[:count]]
    for disk in disks:
        disk.load(content)
    return disks


def _compare(disks: list[SimulatedDisk], size: int, log: MirrorLog | None = None) -> MirrorReport:
    with Reactor(SimulatedBackend(3)) as reactor:
        legs = [IoRegion(disk, 0, disk.sectors) for disk in disks]
        return compare(legs, size, log=log, reactor=reactor)


@pytest.mark.parametrize("size", [2, 64, 2048, 4096, 8192])
def test_every_region_that_differs_is_named(size: int) -> None:
    a, b = _disks(2)
    changed = [*random.Random(size).sample(range(SECTORS), 9), SECTORS - 1]
    for sector in changed:
        b.content[sector * 512 + sector % 512] ^= 1
    report = _compare([a, b], size)
    regions = {sector // size for sector in changed}
    assert {region for low, high in report.differing for region in range(low, high)} == regions
    assert report.by_leg == [report.differing]
    assert report.regions == -(-SECTORS // size)
    assert _compare([a, a_copy(a)], size).differing.total() == 0


def a_copy(disk: SimulatedDisk) -> SimulatedDisk:
    twin = SimulatedDisk(disk.sectors, "twin")
    twin.load(disk.content)
    return twin


def test_the_leg_that_differs_and_what_the_log_knew() -> None:
    a, b, c = _disks(3)
    c.content[5 * 64 * 512] ^= 1
    c.content[9 * 64 * 512] ^= 1
    report = _compare([a, b, c], 64, _log(157, {5, 30}))
    assert [list(ranges) for ranges in report.by_leg] == [[], [(5, 6), (9, 10)]]
    assert list(report.known) == [(5, 6)]
    assert list(report.unknown) == [(9, 10)]
    assert exit_code(report) == ExitCode.MISMATCH


def test_regions_behind_the_end_of_a_short_log_count_as_dirty() -> None:
    a, b = _disks(2)
    b.content[20 * 64 * 512] ^= 1
    report = _compare([a, b], 64, _log(20, set()))
    assert (list(report.known), list(report.unknown)) == ([(20, 21)], [])
    assert exit_code(report) == ExitCode.OK


@pytest.mark.parametrize("size", [8, 4096])
def test_what_cannot_be_read_is_named_and_the_rest_compared(size: int) -> None:
    a, b = _disks(2)
    b.fail(Op.READ, 2100, 1)
    b.content[9000 * 512] ^= 1
    report = _compare([a, b], size)
    bad, other = 2100 // size, 9000 // size
    assert [list(ranges) for ranges in report.unreadable] == [[], [(bad, bad + 1)]]
    assert list(report.differing) == [(other, other + 1)]


def test_three_legs_are_compared_where_the_first_cannot_be_read() -> None:
    a, b, c = _disks(3)
    a.fail(Op.READ, 640, 8)
    c.content[641 * 512] ^= 1
    report = _compare([a, b, c], 64)
    assert list(report.differing) == [(10, 11)]


def test_what_cannot_be_legs_of_one_mirror_is_refused() -> None:
    a, b = _disks(2)
    whole = IoRegion(a, 0, SECTORS)
    with Reactor(SimulatedBackend()) as reactor:
        for legs, size, says in [
            ([whole], 8, "2 to 9 legs, not 1"),
            ([whole] * 10, 8, "2 to 9 legs, not 10"),
            ([whole, whole], 8, "the same place of one device"),
            ([whole, IoRegion(b, 0, 8)], 8, "differ in length"),
            ([whole, IoRegion(b, 0, SECTORS)], 12, "power of two"),
            ([whole, IoRegion(b, 0, SECTORS)], 1, "power of two of at least 2"),
        ]:
            with pytest.raises(UsageError, match=says):
                compare(legs, size, reactor=reactor)


def test_the_region_size_is_guessed_where_only_one_fits() -> None:
    assert guess_region_size(SECTORS, _log(157, set())) == 64
    with pytest.raises(UsageError, match="no region size makes"):
        guess_region_size(SECTORS, _log(158, set()))
    assert [guess_region_size(3, _log(2, set())), guess_region_size(4, _log(1, set()))] == [2, 4]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Legs `a` and `b`, which differ in regions 3 and 4, and a log that knows of 3 only."""
    a = random.Random(2).randbytes(SECTORS * 512)
    b = bytearray(a)
    b[3 * 64 * 512] ^= 1
    b[4 * 64 * 512 + 5] ^= 1
    contents = {"a": a, "b": bytes(b), "log": _log(157, {3, 9}).build(), "short": a[:512]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in contents}


def _check(words: list[str]) -> int:
    parser = Parser(prog="check")
    configure_check(parser)
    return run_check(parser.parse_args(words))


def test_the_check_of_two_files(files: dict[str, str], capsys: Any) -> None:
    assert _check([files["a"], files["b"]]) == ExitCode.MISMATCH
    shown = capsys.readouterr()
    assert shown.out == "region 0: the legs differ\n"  # regions of 4096 sectors
    assert "1 of 3 regions of 4096s (2 MiB) differ" in shown.err
    assert _check([files["a"], files["b"], "--log", files["log"]]) == ExitCode.MISMATCH
    assert capsys.readouterr().out == (
        "region 4: the legs differ, and the log calls it clean\n"
        "region 3: the legs differ, and the log knows\n"
    )
    assert _check([files["a"], files["b"], "--count", "90K"]) == ExitCode.OK


def test_the_check_as_json(files: dict[str, str], capsys: Any) -> None:
    assert _check([files["a"], files["b"], "--log", files["log"], "--json"]) == ExitCode.MISMATCH
    values = json.loads(capsys.readouterr().out)
    assert values["known_to_log"] == [[3, 4]]
    assert values["unknown_to_log"] == [[4, 5]]
    assert values["legs"][1]["differs_from_first"] == [[3, 5]]


def test_the_check_refuses_legs_of_different_sizes(files: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="differ in length"):
        _check([files["a"], files["short"]])


def test_the_log_in_numbers(files: dict[str, str], capsys: Any) -> None:
    assert main(["mirror-log", "info", files["log"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "version": 2,
        "nr_regions": 157,
        "clean": 155,
        "dirty": 2,
        "size_bytes": 1536,
    }
    assert main(["mirror-log", "info", files["log"]]) == 0
    assert "clean:    155 (98.73%)" in capsys.readouterr().out
    assert main(["mirror-log", "dump", "--json", files["log"]]) == 0
    dump = {"version": 2, "nr_regions": 157, "clean": 155, "dirty": [3, 9]}
    assert json.loads(capsys.readouterr().out) == dump
    assert main(["mirror-log", "dump", files["log"]]) == 0
    assert capsys.readouterr().out == "3\n9\n"


def test_the_check_of_a_log(files: dict[str, str], capsys: Any) -> None:
    assert main(["mirror-log", "check", files["log"]]) == 0
    assert "sound, 157 regions" in capsys.readouterr().err
    assert main(["mirror-log", "check", "--regions", "156", files["log"]]) == 4
    assert "byte 8: the log is for 157 regions, not 156" in capsys.readouterr().out
    path = Path(files["log"])
    data = bytearray(path.read_bytes())
    data[1024 + 20] = 0x7F
    path.write_bytes(data[:1050])  # all bits are there, but not all that a mirror reads
    assert main(["mirror-log", "check", "--json", str(path)]) == 4
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [sentence.split(": ")[1] for sentence in found] == ["byte 1044", "byte 1050"]


@pytest.mark.parametrize("verb", ["info", "dump", "check"])
@pytest.mark.parametrize(
    ("cut", "patch", "says"),
    [
        (1030, b"", "byte 1030: "),
        (700, b"", "byte 700: "),
        (10, b"", "byte 10: "),
        (0, b"", "byte 0: "),
        (1536, b"xxxx", "byte 0: the magic"),
    ],
)
def test_a_damaged_log_ends_with_4(
    files: dict[str, str], capsys: Any, verb: str, cut: int, patch: bytes, says: str
) -> None:
    path = Path(files["log"])
    data = path.read_bytes()
    path.write_bytes((patch + data[len(patch) :])[:cut])
    assert main(["mirror-log", verb, str(path)]) == 4
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.startswith(f"dmcopy: {path}")
