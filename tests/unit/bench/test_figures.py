"""The statistics of the benchmark: medians, ratios within rounds, verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.figures import (
    TWIN,
    Metric,
    Run,
    Spread,
    Table,
    Target,
    Unit,
    missed,
    rotated,
    spread,
)


def table(*targets: Target, **figures: list[float | None]) -> Table:
    rounds = {
        name: [None if value is None else Run(value, cpu=value / 10) for value in values]
        for name, values in figures.items()
    }
    return Table("t", "a table", Unit("MB/s"), targets, rounds)


def test_a_spread_is_the_median_and_the_range() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([]) is None


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine halved its speed after the first round; ours was 1.5 times theirs throughout.
    drifting = table(ours=[300, 150, 150], theirs=[200, 100, 100])
    assert drifting.ratio("ours", "theirs") == pytest.approx(1.5)


def test_rounds_in_which_one_side_failed_do_not_count() -> None:
    assert table(ours=[2, None, 6], theirs=[1, 1, None]).ratio("ours", "theirs") == 2
    assert table(ours=[None], theirs=[1]).ratio("ours", "theirs") is None
    assert table(ours=[1]).ratio("ours", "nobody") is None


def test_the_best_of_several_is_compared_with() -> None:
    target = Target("of the best", "ours", 1.0, ("slow", "fast", "absent"))
    (verdict,) = table(target, ours=[8, 8], slow=[2, 2], fast=[10, 10]).verdicts()
    assert verdict.against == "fast"
    assert verdict.figure == pytest.approx(0.8)
    assert verdict.reached is False


def test_small_is_good_where_the_target_says_so() -> None:
    target = Target("of their CPU", "ours", 1.0, ("theirs",), Metric.CPU, at_most=True)
    (verdict,) = table(target, ours=[8], theirs=[10]).verdicts()
    assert verdict.reached is True


def test_a_target_can_be_a_plain_figure() -> None:
    within, beyond = Target("MiB", "ours", 32, at_most=True), Target("MB/s", "ours", 32)
    judged = table(within, beyond, ours=[30, 31, 90])
    assert [verdict.reached for verdict in judged.verdicts()] == [True, False]
    assert [verdict.target for verdict in missed([judged])] == [beyond]


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    unmeasured = table(Target("of theirs", "ours", 1.0, ("theirs",)), ours=[1], theirs=[None])
    assert [verdict.reached for verdict in unmeasured.verdicts()] == [None]
    assert missed([unmeasured]) == []


def test_every_contender_comes_first_once() -> None:
    turns = [rotated(["a", "b", "c"], turn) for turn in range(4)]
    assert [turn[0] for turn in turns] == ["a", "b", "c", "a"]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert rotated([], 3) == []


@pytest.mark.parametrize(
    ("again", "judged"),
    [
        ([100, 101, 99, 100, 102], True),
        ([130, 128, 131, 129, 130], False),  # both are the same program: the machine was not quiet
        ([50, 200, 60, 180, 100], False),  # right in the middle, but by luck
    ],
)
def test_nothing_is_judged_where_two_equal_runs_differ(again: list[int], judged: bool) -> None:
    compared = Target("of theirs", "ours", 1.0, ("theirs",))
    plain = Target("MiB", "ours", 32.0, at_most=True)
    rounds: dict[str, list[float | None]] = {"theirs": [200.0] * 5, "ours": [100.0] * 5}
    rounds["ours" + TWIN] = [float(value) for value in again]
    measured = table(compared, plain, **rounds)
    ratio, figure = measured.verdicts()
    assert ratio.figure == 0.5
    assert ratio.reached is (False if judged else None)
    assert ratio.busy is not judged
    assert figure.reached is False  # such as memory, which others do not change
    assert missed([measured]) == ([ratio, figure] if judged else [figure])


def test_more_rounds_make_a_ratio_surer() -> None:
    def off(rounds: int) -> float:
        seconds: dict[str, Any] = {"ours": [100, 110] * rounds, "ours" + TWIN: [110, 100] * rounds}
        found = table(**seconds).off
        assert found is not None
        return found

    assert off(1) == pytest.approx(0.13, abs=0.01)
    assert off(9) == pytest.approx(0.04, abs=0.01)
    assert table(ours=[1, 2]).off is None
