"""The statistics of the benchmark: medians, ratios within rounds, verdicts."""

from __future__ import annotations

import pytest

from tests.bench.figures import (
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
