"""The rest of the benchmark's harness, without measuring anything."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.bench import mirror, plot, report
from tests.bench.disks import files
from tests.bench.figures import Run, Spread, Table, Target, Unit
from tests.bench.pieces import BLOCK, scattered
from tests.bench.process import BenchError, run
from tests.bench.rounds import Contender, measure


def runs_of(name: str, calls: list[str]) -> Contender:
    def work() -> Run:
        calls.append(name)
        if name == "broken":
            raise BenchError("no such thing")
        return Run(100.0)

    return Contender(name, work)


def test_every_round_runs_everybody_in_another_order() -> None:
    calls: list[str] = []
    table = Table("t", "a table", Unit("MB/s"))
    measure(table, [runs_of(name, calls) for name in ("a", "b", "c")], None, 3)
    assert calls == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert all(len(runs) == 3 for runs in table.rounds.values())


def test_a_broken_contender_is_named_and_not_run_again() -> None:
    calls: list[str] = []
    table = Table("t", "a table", Unit("MB/s"))
    measure(table, [runs_of(name, calls) for name in ("broken", "good")], None, 3)
    assert calls.count("broken") == 1
    assert table.failures == {"broken": "no such thing"}
    assert table.rounds["broken"] == [None, None, None]
    assert table.values("good") == [100.0] * 3


def test_a_wrong_copy_is_a_failure_not_a_figure() -> None:
    def differs() -> None:
        raise BenchError("the destination differs")

    table = Table("t", "a table", Unit("MB/s"))
    measure(table, [Contender("quick", lambda: Run(1e9), differs)], None, 2)
    assert table.values("quick") == []
    assert "differs" in table.failures["quick"]


@pytest.mark.parametrize("neighbours", [0.0, 0.5, 0.9])
def test_no_block_is_used_twice_and_runs_continue_on_both_sides(neighbours: float) -> None:
    count, blocks = 4000, 10_000
    pairs = scattered(blocks, count, neighbours=neighbours)
    sources, dests = pairs[::2].tolist(), pairs[1::2].tolist()
    for side in (sources, dests):
        assert len(set(side)) == count
        assert min(side) >= 0
        assert max(side) < blocks * BLOCK
        assert all(offset % BLOCK == 0 for offset in side)
    steps = itertools.pairwise(zip(sources, dests, strict=True))
    follow = sum(after == (before[0] + BLOCK, before[1] + BLOCK) for before, after in steps)
    assert follow / count == pytest.approx(neighbours, abs=0.05)


def test_a_list_too_long_for_its_disk_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        scattered(10, 11)


def test_files_are_full_and_go_away(tmp_path: Path) -> None:
    with files(tmp_path, 3 << 20, 2) as disks:
        paths = [disks.source, *disks.dests]
        assert [path.stat().st_size for path in paths] == [3 << 20] * 3
        assert disks.source.read_bytes() != disks.dests[0].read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_a_failing_command_is_one_sentence() -> None:
    with pytest.raises(BenchError, match=r"^false ended with exit code 1$"):
        run(["false"])
    with pytest.raises(BenchError, match=r"^cat ended with exit code 1: cat: /nowhere: No such"):
        run(["cat", "/nowhere"])


def test_a_command_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(BenchError, match="sleep took too long and was stopped"):
        run(["sleep", "30"], timeout=0.1)


def test_the_report_says_what_passes_what_misses_and_what_is_missing() -> None:
    targets = (
        Target("of dd's speed", "dmcopy", 1.0, ("dd",)),
        Target("of fio's speed", "dmcopy", 0.95, ("fio",)),
        Target("of cp's speed", "dmcopy", 1.0, ("cp",)),
    )
    rounds: dict[str, list[Run | None]] = {
        "dmcopy": [Run(900.0, 0.1, 0.2), Run(1100.0, 0.1, 0.2)],
        "dd": [Run(500.0, 0.1, 0.2), Run(500.0, 0.1, 0.2)],
        "fio": [Run(2000.0), Run(2000.0)],
        "cp": [None, None],
    }
    table = Table("t", "a table", Unit("MB/s", "CPU s/GiB"), targets, rounds)
    table.failures["cp"] = "no luck"
    facts = {"processors": "2"}
    shown = report.text([table], facts, ["qemu-img"])
    times = "\N{MULTIPLICATION SIGN}"
    assert f"pass: 2.00{times}, target at least 1{times} of dd's speed" in shown
    assert f"MISS: 0.50{times}, target at least 0.95{times} of fio's speed" in shown
    assert f"NOT MEASURED: at least 1{times} of cp's speed" in shown
    assert "failed: cp: no luck" in shown
    assert "qemu-img" in shown
    assert "| dmcopy | 1000 |" in report.markdown([table], facts, [])
    verdicts = json.loads(report.as_json([table], facts, []))["tables"][0]["verdicts"]
    assert [verdict["reached"] for verdict in verdicts] == [True, False, None]


def crash(size: int, place: str, seconds: float) -> Table:
    table = Table(f"crash-{size}-{place}", f"resync of {size} MiB, RAM {place}", mirror.SECONDS)
    for share, name in zip(mirror.SHARES, ("0%", "5%", "25%", "100%"), strict=True):
        table.rounds[f"{name} dirty"] = [Run(seconds * share), Run(seconds * share + 1), None]
    return table


def test_the_time_of_a_resync_as_curves() -> None:
    tables = [crash(64, "loops", 4.0), Table("open", "a table", mirror.SECONDS)]
    (curve,) = mirror.curves(tables)
    assert (curve.panel, curve.label) == ("RAM loops", "64 MiB")
    assert curve.points[25.0] == Spread(1.5, 1.0, 2.0)
    assert list(curve.points) == [0.0, 5.0, 25.0, 100.0]


def test_equal_curves_make_equal_pictures(tmp_path: Path) -> None:
    curves = mirror.curves([crash(64, "loops", 1.0), crash(256, "loops", 4.0)])
    paths = [tmp_path / name for name in ("one.svg", "other.svg")]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        with pytest.raises(BenchError, match="plot needs matplotlib"):
            plot.draw_curves(curves, mirror.AXES, paths[0])
        return
    for path in paths:
        plot.draw_curves(curves, mirror.AXES, path)
    text = paths[0].read_text(encoding="utf-8")
    assert paths[1].read_text(encoding="utf-8") == text
    assert all(word in text for word in ("64 MiB", "256 MiB", "RAM loops", *mirror.AXES))
    assert "dc:date" not in text
    assert len(text) < 30_000


def test_where_contenders_are_compared_the_first_runs_twice_in_each_round() -> None:
    calls: list[str] = []
    table = Table("t", "a table", Unit("MB/s"), (Target("of b's", "a", 1.0, ("b",)),))
    measure(table, [runs_of(name, calls) for name in ("a", "b")], None, 2)
    assert calls == ["a", "b", "a", "b", "a", "a"]
    assert table.off == 0
    shown = report.text([table], {}, [])
    assert "two equal runs: a ratio may be off by 0%" in shown
    table.rounds["a, again"] = [Run(100.0), Run(300.0)]
    assert "too busy to judge: 1.00" in report.text([table], {}, [])


def test_a_quick_report_has_ratios_and_no_figures() -> None:
    rounds: dict[str, list[Run | None]] = {
        "dmcopy": [Run(4000.0), Run(6000.0)],
        "dd": [Run(2000.0), Run(2000.0)],
        "fio": [None, None],
    }
    table = Table("t", "a table", Unit("MB/s", "CPU s/GiB"), (), rounds)
    shown = report.text([table], {}, [], ratios=True)
    assert [line.split() for line in shown.splitlines()[3:]] == [
        ["dmcopy", "is", "range"],
        ["dd", "2.50\N{MULTIPLICATION SIGN}", "2.00\N{EN DASH}3.00"],
        ["fio", "failed"],
    ]
